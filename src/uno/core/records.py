"""``NamedTuple`` as in typing, made in half the time.

Most of what uno's import costs was this: typing compiles the annotation of every field, which nobody here looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    class _Record(type):
        def __new__(mcs, name, bases, members):
            if not bases:
                return super().__new__(mcs, name, bases, members)
            fields = members.pop("__annotations__", {})
            defaults = [members.pop(field) for field in fields if field in members]
            made = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            made.__annotations__ = fields
            for member, value in members.items():
                setattr(made, member, value)
            return made

    class NamedTuple(metaclass=_Record):
        """A class whose annotated names are the fields of a tuple."""
