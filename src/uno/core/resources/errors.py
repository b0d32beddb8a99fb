"""What can be wrong with an id, and what was probably meant?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uno.core.masking import masked


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


def shown(value: object) -> str:
    """A wrong argument in a message: text and numbers as they are, of any other object its class, since its own text
    may hold a password."""
    if value is None or isinstance(value, (str, int, float)):
        text = masked(repr(value))
        return text if len(text) <= 100 else text[:100] + "…"
    return f"an object of class {type(value).__name__}"


def misfit(function: Callable[..., object], *arguments: object) -> str:
    """Why ``function`` cannot be called with ``arguments``; "" when it can, or when that cannot be told."""
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return str(error)
    return ""


class ResourceError(ValueError):
    """Something is wrong with how a resource is registered; the message names the fix."""


class DuplicateResourceError(ResourceError):
    """The id (attribute ``id``) belongs to another resource already."""

    def __init__(self, id: str, asked: str | None = None) -> None:
        self.id = id
        super().__init__(
            f"resource {id!r} is registered already; choose another id=, or unregister({id!r}) first"
            if asked is None or asked == id
            else f"this object is registered already, as {id!r}; use that, or unregister({id!r}) before {asked!r}"
        )


class UnknownResourceError(KeyError):
    """No resource has the id (attribute ``id``)."""

    def __init__(self, id: object, known: Iterable[str]) -> None:
        self.id = id
        self._message = (
            f"no resource {shown(id)} is registered.{near(id, known)}"
            if isinstance(id, str)
            else f"a resource is named by its id, a str such as 'main-db', not by {shown(id)}"
        )
        super().__init__(self._message)

    def __str__(self) -> str:
        return self._message
