"""What can be wrong with an id, and what was probably meant?"""

from __future__ import annotations

from collections.abc import Iterable


def near(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for what is nearest among ``known``; else what there is; else nothing."""
    options = sorted(set(known))
    known_ones = f" Known: {', '.join(options[:12])}{', ...' if len(options) > 12 else ''}."
    return meant(word, options) or (known_ones if options else "")


def meant(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for what is nearest among ``known``, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, sorted(set(known)), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


class ResourceError(ValueError):
    """Something is wrong with how a resource is registered; the message names the fix."""


class DuplicateResourceError(ResourceError):
    """The id (attribute ``id``) belongs to another resource already."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(
            f"resource {id!r} is registered already; choose another id=, or unregister({id!r}) first"
        )


class UnknownResourceError(KeyError):
    """No resource has the id (attribute ``id``)."""

    def __init__(self, id: object, known: Iterable[str]) -> None:
        self.id = id
        hint = near(id, known) if isinstance(id, str) else ""
        self._message = f"no resource {id!r} is registered.{hint}"
        super().__init__(self._message)

    def __str__(self) -> str:
        return self._message
