"""How does uno watch one kind of resource?

One class says everything about it: how an object is recognised and named, what is measured and how it is
read, which levels are sensible, what explains an alert. The folder ``resource_types`` holds one file for each
library; applications and plug-ins write their own in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from uno.core.monitoring.instrumentation import Stat, hung
from uno.core.monitoring.metrics import CounterCell, HistogramCell, Kind, MetricError, Spec, metric_of
from uno.core.monitoring.series import current_batch
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource
from uno.core.resources.errors import near, shown

if TYPE_CHECKING:
    from uno.core.resources import ResourceManager

T = TypeVar("T")

#: Gauges that hooks alone know; unknown while a library is only read.
BY_HOOKS = frozenset(("uno.db.client.connection.oldest_use", "http.client.active_requests"))


def _pairs(rules: object) -> list[tuple[object, ...]]:
    """What stands in ``thresholds``; whatever is no tuple as an empty one."""
    if not isinstance(rules, Sequence):
        return [()]
    return [rule if isinstance(rule, tuple) else () for rule in rules]


def ask(method: Callable[..., T], *arguments: Any, otherwise: T) -> T:
    """What a type tells of an object; ``otherwise`` where the object is not of a shape that the type knows."""
    try:
        return method(*arguments)
    except Exception:  # noqa: BLE001 - that is this resource's affair: the others go on
        return otherwise


class ResourceTypeMonitor:
    """Watches all resources of one type.

    An application's monitor overrides :meth:`setup_metrics` and :meth:`collect_metrics` and is given to
    ``ResourceMonitor.register_type_monitor``. A library's monitor also says which classes it recognises
    (``targets``) and may hook them (:meth:`install`).
    """

    #: The type of resource: "database", "redis", "http_client", ...
    resource_type: ClassVar[str] = ""
    #: Dotted names of the classes that are recognised, also through subclasses. Never imported by uno.
    targets: ClassVar[tuple[str, ...]] = ()
    #: Dotted names of subclasses that are no resources of their own.
    ignored: ClassVar[tuple[str, ...]] = ()
    #: The library's module whose ``__version__`` is shown, and the versions that were tested.
    library: ClassVar[str] = ""
    tested: ClassVar[str] = ""
    #: What is measured.
    metrics: ClassVar[tuple[Spec, ...]] = ()
    #: What the server is asked for, where it can be: such a series comes with the first answer.
    asked: ClassVar[tuple[Spec, ...]] = ()
    #: Levels that apply unless the application sets others: (metric, threshold).
    thresholds: ClassVar[tuple[tuple[str, Threshold], ...]] = ()
    #: False: found anywhere in the process. True: only where a first-party name holds it (there are many others).
    only_named: ClassVar[bool] = False
    #: True when collect_metrics may block: it then runs on a thread of its own. Ours only read memory.
    blocking: ClassVar[bool] = True
    #: The metrics that a card shows, the first one as its chart.
    headline: ClassVar[tuple[str, ...]] = ()

    #: Why the library is only read, in words; "" while its hooks are on or it has none. uno sets it.
    read_only: str = ""

    def __init__(
        self, resource_manager: ResourceManager | None = None, resource_type: str | None = None
    ) -> None:
        self.resource_manager = resource_manager
        if resource_type is not None:
            if not isinstance(resource_type, str) or not resource_type:
                raise ValueError(f"resource_type is a non-empty string, not {shown(resource_type)}")
            self.resource_type = resource_type  # type: ignore[misc]
        if not self.resource_type:
            raise ValueError(
                f"{type(self).__name__} needs a resource_type: super().__init__(manager, resource_type=...)"
            )
        for rule in _pairs(self.thresholds):
            if not (len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], Threshold)):
                raise TypeError(
                    f'{type(self).__name__}.thresholds holds pairs such as ("depth", Threshold(warning=10))'
                )
        self.specs: dict[str, Spec] = {spec.name: spec for spec in (*self.metrics, *self.asked)}
        self._is_set_up = False

    # -- definition ------------------------------------------------------------------------------------

    def setup_metrics(self) -> None:
        """Define metrics with :meth:`add_metric`; called once, when the monitor is registered."""

    def ensure_set_up(self) -> None:
        """Call :meth:`setup_metrics` unless that was done."""
        if not self._is_set_up:
            self.setup_metrics()
            self._is_set_up = True

    def add_metric(
        self,
        name: str,
        description: str = "",
        metric_type: Kind = "gauge",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        title: str = "",
    ) -> None:
        """Define a metric. ``metric_type``: "counter", "gauge" or "histogram". MetricError where it cannot be."""
        if metric_type not in ("counter", "gauge", "histogram"):
            raise MetricError(f"metric_type is 'counter', 'gauge' or 'histogram', not {metric_type!r}")
        spec = metric_of(Spec(name, metric_type, description, unit, tuple(labels), title)).spec  # validates
        present = self.specs.get(name)
        if present is not None and present != spec:
            raise MetricError(f"{type(self).__name__} defines {name!r} twice, and differently")
        self.specs[name] = spec

    # -- collection ------------------------------------------------------------------------------------

    def collect_metrics(self, resource: Resource) -> Awaitable[None] | None:
        """Read ``resource`` and call :meth:`update_metric` for each number. May be ``async def``.

        Whatever it raises becomes a gap and a line in the log, never an error of the application.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define collect_metrics(resource)")

    def at_rest(self, target: Any) -> object:
        """What stays equal for as long as :meth:`collect_metrics` would give the same numbers: then it is left out.

        None, the default: they may differ each time. Cells are shared, so what they count makes no difference.

        Reads memory only. Counts for the collection of the same class, not for one that a subclass defines.
        """
        return None

    def update_metric(
        self, name: str, value: Any, labels: Mapping[str, object] | None = None, *, at_server: bool = False
    ) -> None:
        """Give the value of a metric of the resource that is being collected.

        A counter takes its total (a fall is a reset), a gauge its value, a histogram one observation; a cell
        (CounterCell, HistogramCell) is shared as it is. None means unknown. ``at_server``: a server's number, the same
        for all workers of the service that ask for it, hence not added up. Raises MetricError for unknown names and
        wrong labels, RuntimeError outside of collect_metrics.
        """
        batch = current_batch.get()
        if batch is None:
            raise RuntimeError(
                "update_metric works inside collect_metrics only, which says whose value it is"
            )
        # A batch of our own, of a resource that was read before: almost all numbers are found by their words.
        words: object = None
        if batch.reader is self and not self.read_only:
            if labels is None:
                words = (name, True) if at_server else name
            elif labels.__class__ is dict:
                words = (name, at_server, *labels.items())
            if batch.put_known(words, value):
                return
        spec = self.specs.get(name)
        if spec is None:
            raise MetricError(f"{type(self).__name__} has no metric {name!r}.{near(name, self.specs)}")
        if self.read_only and (isinstance(value, CounterCell | HistogramCell) or name in BY_HOOKS):
            if spec.kind == "histogram":
                return  # a gap; None would be one without observations
            value = None  # nobody counts
        entry = batch.put(spec._replace(merge="max") if at_server else spec, value, labels)
        if words is not None:
            batch.learn(words, entry, labels)

    # -- what a library's monitor adds -----------------------------------------------------------------

    def identify(self, target: Any) -> Identity:
        """What ``target`` is called and where it leads to. Only harmless fields: never a password."""
        return Identity()

    def reference(self, target: Any) -> Callable[[], Any]:
        """A weak reference to ``target``. Overridden where the class has no ``__weakref__``."""
        return weakref.ref(target)

    def stand_in(self, target: Any) -> Any:
        """What is watched in the place of ``target``, where its class allows neither attributes nor weak references."""
        return target

    def stat(self, target: Any) -> Stat | None:
        """The Stat that hooks hang on ``target``, or None."""
        found = hung(target)
        return found if isinstance(found, Stat) else None

    def attach(self, target: Any) -> None:
        """Prepare one object to be watched, before its first collection."""

    def detach(self, target: Any) -> None:
        """Undo :meth:`attach`."""

    def install(self) -> list[Callable[[], None]]:
        """Hook the library's classes; returns what undoes it. Called when the library is loaded."""
        return []

    def ready(self) -> bool:
        """Whether the library is loaded, so that :meth:`install` can work."""
        import sys

        return bool(self.library) and self.library in sys.modules

    def parts(self) -> int:
        """How much of what :meth:`install` hooks is loaded, where a library loads it in parts: hooks are installed anew
        when it is more."""
        return 0

    def statistics(self, target: Any) -> Mapping[str, float | None] | Awaitable[Mapping[str, float | None]]:
        """Numbers for ``Resource.get_statistics()``."""
        return {}

    def ping(self, target: Any) -> Awaitable[object] | object:
        """Whether the resource works: returns (anything but False) or raises. None: nothing can be told."""
        return None

    def inherited(self, target: Any) -> object:
        """In a forked process: what holds connections that may be the parent's, which a ping must not use; None where
        nothing does. A ping is made again when the application has replaced it. Reads memory only."""
        return None

    def answered(self, target: Any) -> None:
        """The server has answered a ping, or was seen to: ask now what else is to be known of it. Must not block."""

    def pings_cheaply(self, target: Any) -> bool:
        """Whether a ping needs no connection that is not there, and may be made each second. Reads memory only."""
        return True

    def refusal(self, error: BaseException) -> str:
        """What a failed ping is called where its type alone does not tell, as "out of connections"; else ""."""
        return ""

    def seems_up(self, target: Any) -> bool:
        """Whether a call of the application has just gone well: a ping would tell nothing new. Reads memory only."""
        return False

    def suspect(self, target: Any) -> bool:
        """Whether calls of the application fail or hang at present, so that a ping is due now. Reads memory only."""
        return False

    def hangs(self, target: Any) -> bool:
        """Whether a call of the application has been running for more than a second, and none has gone well since it
        began: what a ping told before is not to be relied on. Reads memory only."""
        return False

    def covers(self, target: Any) -> tuple[object, ...]:
        """Objects inside ``target`` that are not resources of their own, since ``target`` stands for them."""
        return ()

    def endpoints(self, target: Any) -> list[str]:
        """Further servers that ``target`` was seen to talk to, as host:port."""
        return []

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        """(in use, limit) for "4 of 10", or None."""
        return None

    def limit_parts(self, target: Any) -> tuple[float, ...]:
        """What the limit of :meth:`capacity` is the sum of, where the application chose several numbers."""
        return ()

    def explain(self, target: Any, metric: str) -> str:
        """What causes the present value of ``metric``, in words: who holds, which line, which error."""
        return ""

    def bound_loop(self, target: Any) -> Any:
        """The event loop that ``target`` belongs to, where that can be told; else None."""
        return None
