"""How does a counter keep its total where it survives the process?

Among workers ``inc`` adds to the slot as ever and then stores the total in the mapping: load and store are one step
under the GIL, since CPython hands it over at calls and jumps only. Whatever thread stores last, stores the newest
total. The function itself gets other code, so that a method which the application has kept (``inc = counter.inc``)
does so too, and outside of a group nothing costs more. What adds to ``value`` by itself (hooks) is brought over
by the tick.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, ClassVar

from uno.core.monitoring.cells import HAS_GIL, NOWHERE, CounterCell, HistogramCell
from uno.core.monitoring.metrics import Counter


def _function(method: Any) -> FunctionType:
    """Below a lock's wrapper, on an interpreter without the GIL."""
    function: FunctionType = getattr(method, "__wrapped__", method)
    return function


class Mapping:
    """Whether counters map their totals: while at least one member of this process asks for it."""

    #: Each function that adds to a counter, with the code that it has alone and among workers.
    _functions: ClassVar[list[tuple[FunctionType, Any, Any]]] = [
        (function, function.__code__, _function(mapped).__code__)
        for function, mapped in (
            (_function(CounterCell.inc), CounterCell.inc_mapped),
            # Without the GIL it calls the cell's own.
            *([(_function(Counter.inc), Counter.inc_mapped)] if HAS_GIL else []),
        )
    ]
    _asked: ClassVar[set[int]] = set()

    @classmethod
    def begin(cls, member: object) -> None:
        """From now on, for ``member``."""
        cls._asked.add(id(member))
        for function, _, mapped in cls._functions:
            function.__code__ = mapped

    @classmethod
    def end(cls, member: object) -> None:
        """No more for ``member``."""
        cls._asked.discard(id(member))
        if not cls._asked:
            for function, plain, _ in cls._functions:
                function.__code__ = plain


def map_counter(cell: CounterCell, view: memoryview[float], at: int) -> None:
    """From now on keep the total of ``cell`` also in ``view[at]``."""
    cell._map, cell._at = view, at  # one step
    value = cell.value
    if value == value:
        view[at] = cell.value


def unmap_counter(cell: CounterCell) -> None:
    """Let go of the mapping."""
    cell._map, cell._at = NOWHERE, 0


def start_anew(cell: Any) -> None:
    """In a forked child: what the parent counted is the parent's."""
    if isinstance(cell, CounterCell | HistogramCell):
        cell.start_anew()
