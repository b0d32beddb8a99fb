"""How do clock, store and readers come together?

ResourceMonitor wires the parts and holds none of their logic: the sampler reads, the store freezes, the history
keeps, alerts and anomalies judge, health sums up; everything that shows something reads the last tick.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Container, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from uno.core.monitoring.alerts import Alert, AlertBook
from uno.core.monitoring.aliases import Aliases
from uno.core.monitoring.anomaly_watch import AnomalyWatch
from uno.core.monitoring.arguments import check_monitor
from uno.core.monitoring.clock import Clock
from uno.core.monitoring.collection import PING_SECONDS, Collection
from uno.core.monitoring.dependencies import Callers
from uno.core.monitoring.discovery import Discovery
from uno.core.monitoring.health import Health, HealthBook
from uno.core.monitoring.hooks import Hooks
from uno.core.monitoring.instrumentation import Stat, failures
from uno.core.monitoring.metrics import Counter, CounterCell, Gauge, Histogram, Metric, MetricError, Spec
from uno.core.monitoring.names import STANDARD, clash, resolve, short_names
from uno.core.monitoring.readings import Awaited, Holder, Reading, UnknownMetricError, choose, reading
from uno.core.monitoring.resource_types import Recogniser, load
from uno.core.monitoring.resource_types.event_loop import LoopTarget
from uno.core.monitoring.sampler import Sampler, running_loop
from uno.core.monitoring.series import STATS, Batch, SeriesStore
from uno.core.monitoring.team import Team
from uno.core.monitoring.thresholds import AlertLevel, Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor, ask
from uno.core.monitoring.workers.wiring import WorkerSharing
from uno.core.resources import Resource, ResourceManager
from uno.core.resources.errors import misfit, near

if TYPE_CHECKING:
    import asyncio

    from uno.core.monitoring.anomaly import AnomalyDetector
    from uno.core.monitoring.exporters.prometheus.serve import MetricsServer
    from uno.core.monitoring.graph import DependencyGraph
    from uno.core.monitoring.history import History
    from uno.core.monitoring.report import Report

log = logging.getLogger("uno.monitor")

#: The resource that stands for the monitor itself.
SELF = "uno"
NAMES_EVERY = 5.0
STOP_SECONDS = 1.5

M = TypeVar("M", Counter, Gauge, Histogram)
T = TypeVar("T")
C = TypeVar("C", bound=Callable[[Alert], object])


class ResourceMonitor:
    """Watches the resources of a manager.

    ``interval`` is the time between two ticks in seconds. ``collect_timeout`` (seconds, by default half the
    interval, 0.5 to 5) bounds one collection. ``history`` keeps the samples; by default an hour second by second
    and a week in five minutes, in memory. ``discover=True`` is ``discover_all_resources()`` at the start.

    Workers of one service show their numbers together (docs/workers.md); ``workers=False``: not this one.

    start() and stop() may be called repeatedly, from any thread, inside and outside of an event loop; the monitor is
    also a context manager.
    """

    def __init__(
        self,
        resource_manager: ResourceManager | None = None,
        *,
        interval: float = 1.0,
        collect_timeout: float | None = None,
        history: History | None = None,
        discover: bool = False,
        service: str | None = None,
        workers: str | os.PathLike[str] | bool | None = None,
    ) -> None:
        check_monitor(
            resource_manager, ResourceManager, interval, collect_timeout, service, history, discover
        )
        self.manager = ResourceManager() if resource_manager is None else resource_manager
        self.interval = float(interval)
        self.collect_timeout = (
            min(5.0, max(0.5, interval / 2)) if collect_timeout is None else float(collect_timeout)
        )
        self.service = service or os.environ.get("OTEL_SERVICE_NAME") or ""
        self.clock = Clock()
        self.started = self.clock.now()
        self.store = SeriesStore()
        self.sharing = WorkerSharing(self.store, workers, self.service)
        self.team = Team(self)
        self.alerts = AlertBook(self.store, interval=self.interval)
        self.health = HealthBook(interval=self.interval, ping_interval=PING_SECONDS)
        self.detector: AnomalyDetector | None = None
        self.tick_seconds = 0.0
        kinds = self.manager.kinds
        self.kinds = kinds if isinstance(kinds, Recogniser) else load()
        self.discovery = Discovery(self.manager, self.kinds)
        self._history = history
        self._discover = discover
        self._aliases = Aliases(self.store)
        self._sampler = Sampler(interval=self.interval, tick=self.tick, workers=self.manager.workers)
        self.collection = Collection(
            self.manager, self.store, self.health, self.clock, timeout=self.collect_timeout
        )
        self.callers = Callers()
        #: The web applications that run with this monitor: the last one that ends stops it.
        self.applications: set[object] = set()
        self._metrics: dict[tuple[str, str], Metric[Any]] = {}
        self._awaited = Awaited(self.store)
        self.hooks = Hooks(self.kinds.kinds)
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._stoppers: tuple[Callable[[float], object], ...] = ()
        self._anomalies: AnomalyWatch | None = None
        self._failing: set[str] = set()
        self._cpu = CounterCell()
        self._names_at = 0.0
        self._lock = threading.RLock()  # definitions; held for moments, and while nothing else is waited for
        self._life_lock = threading.RLock()  # start and stop
        self._tick_lock = threading.RLock()
        self._built_in: list[Resource] = []
        self._servers: list[MetricsServer] = []
        self._set_default_thresholds()
        self.manager.listen(_weak_listener(self))
        for resource in self.manager:
            self._added(resource)
        _MONITORS.add(self)

    # -- life ------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the monitor ticks by itself."""
        return self._sampler.running

    @property
    def view(self) -> SeriesStore:
        """What is shown: the series of all workers of the service, else those of this process."""
        return self.sharing.view

    @property
    def history(self) -> History:
        """Where the samples are kept."""
        if self._history is None:
            from uno.core.monitoring.history.memory import MemoryHistory

            self._history = MemoryHistory()
        return self._history

    def start(self) -> None:
        """Begin to tick. Does nothing when that is so already."""
        with self._life_lock:
            if self.running:
                return
            loop = running_loop()
            if loop is not None:
                self.bind_loop(loop)
            self._register_built_in()
            self._install_hooks()  # at once: what the application does next is seen
            if self._discover:
                self.discover_all_resources()
            self.sharing.join(self.stop, self.history)
            self._sampler.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Stop ticking within 2 s, take every hook off, end every thread. What was recorded stays readable."""
        with self._life_lock:
            atexit.unregister(self.stop)
            was_running, until = self.running, time.monotonic() + STOP_SECONDS
            while self._servers:
                self._servers.pop().close()
            self._sampler.stop()
            for stopper in self._stoppers:
                self._guarded("flush", partial(stopper, max(0.2, until - time.monotonic())))
            with self._lock:
                self.hooks.remove()
            self._sampler.pulses = ()
            # The last values would otherwise be shown for ever. A tick that hangs is not waited for.
            if was_running and self._tick_lock.acquire(timeout=0.5):
                try:
                    self.store.blank_all()
                    self.store.tick(self.clock.now())
                finally:
                    self._tick_lock.release()
            self.sharing.leave()
            for resource in [r for r in self._built_in if isinstance(r.target, LoopTarget)]:
                if resource in self.manager:
                    self.manager.unregister(resource)
            self._built_in = [r for r in self._built_in if r in self.manager]
            for resource in self._built_in:  # their descriptors; a tick by hand opens them again
                if isinstance(resource.driver, ResourceTypeMonitor) and resource.target is not None:
                    resource.driver.detach(resource.target)
            self.alerts.shutdown()
            self.manager.workers.close()

    def __enter__(self) -> ResourceMonitor:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def serve_metrics(self, port: int, host: str = "127.0.0.1") -> int:
        """Serve ``http://host:port/metrics`` for programs without a web server; returns the port (0: any free one).

        Starts the monitor, and ends with it; a forked child does not serve. The page asks for no password: only
        this machine reaches the default ``host``. Raises ValueError for what is no port, OSError when the port is in
        use or the host none of this machine's.
        """
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65_535:
            raise ValueError(f"port is 0 to 65535, not {port!r}")
        from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter
        from uno.core.monitoring.exporters.prometheus.serve import MetricsServer

        with self._life_lock:
            server = MetricsServer(PrometheusExporter(self), host, port)
            self._servers.append(server)
            self.start()
        return server.port

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make ``loop`` the home of resources that name no other, and watch its lag."""
        self.collection.app_loop = loop
        for resource in self._built_in:
            target = resource.target
            if isinstance(target, LoopTarget) and target.loop is loop:
                return
        self._built_in.append(self.manager.register(LoopTarget(loop), id=self._free("event-loop"), loop=loop))

    def _register_built_in(self) -> None:
        from uno.core.monitoring.resource_types.file_handle import FileTarget  # not for an import alone
        from uno.core.monitoring.resource_types.host import HostTarget
        from uno.core.monitoring.resource_types.process import ProcessTarget

        built_in = (ProcessTarget, "process"), (FileTarget, "process-files"), (HostTarget, "host")
        for make, id in built_in:
            if not any(type(r.target) is make for r in self.manager):
                self._built_in.append(self.manager.register(make(), id=self._free(id)))

    def _free(self, id: str) -> str:
        number, free = 1, id
        while free in self.manager:
            number += 1
            free = f"{id}-{number}"
        return free

    # -- resources come and go -------------------------------------------------------------------------

    def discover_resources(self, resource_type: str) -> list[Resource]:
        """Find the resources of one type that live in the process, and watch for more while the monitor runs.

        Returns those that are new. UnknownResourceTypeError names the known types.
        """
        return self.discovery.scan(resource_type)

    def discover_all_resources(self) -> list[Resource]:
        """As discover_resources, for all types."""
        return self.discovery.scan()

    def register_type_monitor(self, type_monitor: ResourceTypeMonitor) -> None:
        """Let ``type_monitor`` watch all resources of its type, those there are and those to come.

        Raises TypeError when it is no ResourceTypeMonitor, ValueError when it is registered already, MetricError for
        metrics that cannot be.
        """
        if not isinstance(type_monitor, ResourceTypeMonitor):
            raise TypeError(f"a ResourceTypeMonitor is needed, not {type(type_monitor).__name__}")
        with self._lock:
            monitors = self.collection.type_monitors
            if any(known is type_monitor for known in monitors):
                raise ValueError(f"this {type(type_monitor).__name__} is registered already")
            type_monitor.ensure_set_up()
            monitors.append(type_monitor)
            for metric, threshold in type_monitor.thresholds:
                self.alerts.set(None, type_monitor.resource_type, metric, threshold, default=True)
            for resource in self.manager:
                if resource.type == type_monitor.resource_type:
                    self.collection.plan(resource)

    def _set_default_thresholds(self) -> None:
        for kind in self.kinds.kinds:
            for metric, threshold in kind.thresholds:
                self.alerts.set(None, kind.resource_type, metric, threshold, default=True)

    def _added(self, resource: Resource) -> None:
        self.health.watch(resource.id)
        self.collection.plan(resource)
        if self.running:
            self._install_hooks()
        if isinstance(resource.target, LoopTarget):
            self._set_pulses()

    def _set_pulses(self) -> None:
        loops = [r.target for r in self.manager if isinstance(r.target, LoopTarget)]
        self._sampler.pulses = tuple(partial(_watch, loop) for loop in loops)

    def _removed(self, resource: Resource) -> None:
        with self._lock:
            self.collection.forget(resource)
            for key in [key for key in self._metrics if key[0] == resource.id]:
                self._metrics.pop(key).watch(None)
            self._aliases.forget(resource.id)
        self.store.remove(resource.id)
        self.store.withdraw(
            SELF, "", lambda spec, labels: "target" in spec.labels and labels[0] == resource.id
        )
        self.health.forget(resource.id)
        if isinstance(resource.target, LoopTarget):
            self._set_pulses()

    # -- metrics ---------------------------------------------------------------------------------------

    def add_metric(self, resource_id: str, metric: M, *, read: Callable[[], Any] | None = None) -> M:
        """Keep ``metric`` (a Counter, Gauge or Histogram) for a resource and return it, to be recorded to.

        A name that the resource's type knows (``connection_pool_usage``, ``query_duration``, every standard name) is
        fed by the type, and its labels are filled. ``read`` (sync or async, without arguments) is asked for the
        value on each tick, off the application's threads.

        Raises UnknownResourceError, TypeError when ``metric`` is none, MetricError when the name is taken, or
        belongs to another kind of metric, or nothing fills a label.
        """
        resource = self.manager.get(resource_id)
        if not isinstance(metric, Metric):
            raise TypeError(f"add_metric takes a Counter, Gauge or Histogram, not {type(metric).__name__}")
        name, spec = metric.name, metric.spec
        with self._lock:
            if (resource.id, name) in self._metrics:
                raise MetricError(
                    f"{resource.id!r} has a metric {name!r} already; use that one, or another name"
                )
            for (other, used), known in self._metrics.items():
                if known is metric:
                    raise MetricError(
                        f"this {name!r} belongs to {other!r}; make one metric for each resource"
                    )
                if used == name and known.kind != metric.kind:
                    raise MetricError(
                        f"{name!r} of {other!r} is a {known.kind}: one name, one kind of metric"
                    )
            reason = clash(spec, [*(known.spec for known in self._metrics.values()), *STANDARD.values()])
            if reason:
                raise MetricError(reason)
            if read is not None:
                if not callable(read):
                    raise TypeError(f"read= is a function without arguments, not {type(read).__name__}")
                if why := misfit(read):
                    raise TypeError(f"read= is called without arguments, and this function needs some: {why}")
                if spec.labels:
                    raise MetricError(f"read= gives one number; {name!r} has the labels {list(spec.labels)}")
                if metric.kind == "histogram":
                    raise MetricError(
                        "read= gives one number a tick; a histogram is recorded to with observe()"
                    )
                self.collection.add_read(resource, spec, read)
            else:
                source = self._specs(resource).get(resolve(name, resource.type))
                if source is not None:
                    if metric.kind == "histogram" != source.kind or (
                        metric.kind == "counter" and source.kind == "gauge"
                    ):
                        raise MetricError(
                            f"{name!r} of a {resource.type} is a {source.kind}, not a {metric.kind}"
                        )
                    if source.name != name:
                        self._aliases.add(resource, metric, source.name, source.labels)
                else:
                    self.store.attach(resource.id, metric)
            self._metrics[resource.id, name] = metric
        return metric

    def _specs(self, resource: Resource) -> dict[str, Spec]:
        """The metrics that type monitors declare for a resource."""
        found: dict[str, Spec] = {}
        for type_monitor in self.collection.monitors_of(resource):
            found.update(type_monitor.specs)
        return found

    def resolve(self, resource_id: str | None, name: str, *, resource_type: str = "") -> str:
        """The model's name for a metric that may be named short, as Prometheus does, or verbatim.

        UnknownMetricError, with near matches, when the resource's type cannot have it; custom resources may have any.
        """
        if not isinstance(name, str) or not name:
            raise UnknownMetricError(str(resource_id or resource_type), name, [])
        resource = None if resource_id is None else self.manager.get(resource_id)
        type = resource.type if resource is not None else resource_type
        specs: dict[str, Spec] = {}
        if resource is not None:
            specs = self._specs(resource)
        else:
            for type_monitor in (*self.kinds.kinds, *self.collection.type_monitors):
                if type_monitor.resource_type == type:
                    specs.update(type_monitor.specs)
        if name in specs:  # what a type monitor of the application calls so is meant, not a short name
            return name
        model = resolve(name, type)
        if model in specs:
            return model
        if any(key[1] == name and key[0] == (resource_id or key[0]) for key in self._metrics):
            return name
        if self.store.select(resource_id, model):
            return model
        if not specs:
            return name  # a custom resource: its numbers are known when it has been read
        known = [*specs, *(short for spec in specs for short in short_names(spec, type))]
        known += [s.metric.name for s in self.store.select(resource_id)] if resource_id else []
        raise UnknownMetricError(resource_id or type, name, known)

    def read(
        self,
        resource_id: str,
        metric: str,
        labels: Mapping[str, str] | None = None,
        *,
        stat: str | None = None,
    ) -> float | None:
        """The value of a metric at the last tick; None for a gap, or before the first tick.

        ``stat`` chooses the statistic: "value" of a gauge, "rate" (default) or "total" of a counter, "p95" (default),
        "mean", "max", "rate", "count" or "sum" of a histogram. Raises UnknownResourceError, UnknownMetricError,
        and MetricError when several series fit and ``labels`` does not choose.
        """
        name = self.resolve(resource_id, metric)
        found = choose(self.store.select(resource_id, name), labels, f"{metric!r} of {resource_id!r}")
        return self.store.value(found, stat) if found is not None else None

    def series(self, resource_id: str | None = None, metric: str | None = None) -> list[Reading]:
        """The series of a resource, of a metric, of both, or all, with their statistics at the last tick."""
        if resource_id is not None:
            self.manager.get(resource_id)
        if metric is not None and not isinstance(metric, str):
            raise UnknownMetricError(resource_id or "", metric, [])
        if metric is None:
            found = self.store.select(resource_id)
        elif resource_id is not None:
            found = self.store.select(resource_id, self.resolve(resource_id, metric))
        else:
            found = self.store.select(None, metric)
            for resource in self.manager:  # a short name means something else for each type
                model = resolve(metric, resource.type)
                if model != metric and metric not in self._specs(resource):
                    found += [s for s in self.store.select(resource.id, model) if s not in found]
        return [reading(self.store, s) for s in found]

    # -- levels ----------------------------------------------------------------------------------------

    def set_threshold(
        self,
        resource_id: str | None = None,
        metric_name: str | None = None,
        threshold: Threshold | None = None,
        *,
        resource_type: str | None = None,
    ) -> None:
        """Alert when a metric of a resource, or of all resources of a type, passes a level.

        Replaces what was set before, defaults included; ``threshold=None`` keeps a default from applying. Raises
        UnknownResourceError, UnknownMetricError, TypeError.
        """
        if (resource_id is None) == (resource_type is None):
            raise TypeError("set_threshold takes resource_id= or resource_type=, one of the two")
        if metric_name is None:
            raise TypeError("set_threshold needs metric_name=, for example 'connection_pool_usage'")
        if threshold is not None and not isinstance(threshold, Threshold):
            raise TypeError(f"threshold= is a Threshold, not {type(threshold).__name__}")
        if resource_type is not None:
            self._check_type(resource_type)
        name = self.resolve(resource_id, metric_name, resource_type=resource_type or "")
        if threshold is not None and threshold.stat is not None:
            specs = self._specs(self.manager.get(resource_id)) if resource_id is not None else {}
            spec = specs.get(name) or STANDARD.get(name)
            known = STATS[spec.kind] if spec is not None else {stat for of in STATS.values() for stat in of}
            if threshold.stat not in known:
                raise MetricError(f"{metric_name!r} has {', '.join(sorted(known))}, not {threshold.stat!r}")
        self.alerts.set(resource_id, resource_type, name, threshold)
        if resource_id is not None and threshold is not None:
            self._await_metric(resource_id, name)

    def _await_metric(self, resource_id: str, name: str) -> None:
        if not self._specs(self.manager.get(resource_id)) and (resource_id, name) not in self._metrics:
            self._awaited.add(resource_id, name)

    def _check_type(self, resource_type: str) -> None:
        """Say so when a type is unknown so far: it may come later, or be a slip."""
        if not isinstance(resource_type, str):
            raise TypeError(
                f"resource_type= is a name such as 'database', not {type(resource_type).__name__}"
            )
        types = {"custom", *self.kinds.types(), *(resource.type for resource in self.manager)}
        types |= {type_monitor.resource_type for type_monitor in self.collection.type_monitors}
        if resource_type not in types:
            log.warning("no resource has the type %r yet.%s", resource_type, near(resource_type, types))

    def on_alert(self, callback: C) -> C:
        """Call ``callback(alert)`` when an alert fires, changes its level or is resolved; usable as a decorator.

        Each callback has a thread of its own; what it raises is logged, and one that hangs stops no other.
        """
        return self.alerts.on_alert(callback)

    def level_of(self, resource_id: str) -> AlertLevel:
        """The worst level that fires on a resource, in any worker of the service.

        UnknownResourceError when there is none.
        """
        self.manager.get(resource_id)
        return max(self.team.firing().get(resource_id, {}).values(), default=AlertLevel.OK)

    def health_of(self, resource_id: str) -> Health:
        """The health of a resource in all workers of the service, from memory; see Team.health.

        UnknownResourceError when there is none.
        """
        self.manager.get(resource_id)
        return self.team.health(resource_id)

    # -- who and why -----------------------------------------------------------------------------------

    def stat_of(self, resource: Resource) -> Stat | None:
        """What hooks have recorded of a resource, None where there are none."""
        target = resource.target
        driver = resource.driver
        if not isinstance(driver, ResourceTypeMonitor) or target is None or driver.read_only:
            return None
        return ask(driver.stat, target, otherwise=None)

    def holders(self, resource_id: str) -> list[Holder]:
        """Who holds the slots of a resource now and who waits for one: the most first, holders before waiters.

        Of other workers of the service as of their last tick.
        """
        return self.team.holders(self.manager.get(resource_id))

    def _explain(self, resource_id: str, metric: str) -> str:
        resource = self.manager.get(resource_id)
        target = resource.target
        driver = resource.driver
        if target is None or not isinstance(driver, ResourceTypeMonitor) or driver.read_only:
            return ""
        return ask(driver.explain, target, metric, otherwise="")

    # -- anomalies -------------------------------------------------------------------------------------

    def set_anomaly_detector(self, detector: AnomalyDetector | None) -> None:
        """Let ``detector`` watch the main metric of each resource, and those that are configured. None: no more."""
        if detector is not None and (isinstance(detector, type) or not hasattr(detector, "step")):
            raise TypeError("set_anomaly_detector takes an AnomalyDetector(), or None")
        with self._lock:
            self.detector = detector
            self._anomalies = None if detector is None else AnomalyWatch(self, detector)

    def configure_anomaly_detection(
        self,
        resource_id: str,
        metric_name: str,
        sensitivity: float | None = None,
        training_period: timedelta | None = None,
    ) -> None:
        """Choose how subtle an anomaly of a metric may be (``sensitivity`` 0 to 1) and how long it remembers.

        Makes a detector when none was set. Raises UnknownResourceError, UnknownMetricError, ValueError.
        """
        name = self.resolve(resource_id, metric_name)
        if self._anomalies is None:
            from uno.core.monitoring.anomaly import AnomalyDetector

            self.set_anomaly_detector(AnomalyDetector())
        assert self._anomalies is not None
        self._anomalies.configure(resource_id, name, sensitivity, training_period)
        self._await_metric(resource_id, name)

    # -- reports and maps ------------------------------------------------------------------------------

    def generate_report(
        self,
        resource_type: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        *,
        resource_id: str | None = None,
    ) -> Report:
        """What happened between two times (by default the last hour), of all resources, a type or one.

        A naive datetime means local time. Raises ValueError when the start is not before the end or only one of the
        two has a time zone, UnknownResourceTypeError, UnknownResourceError.
        """
        from uno.core.monitoring.report.build import build_report

        return build_report(self, resource_type, start_time, end_time, resource_id=resource_id)

    def generate_dependency_graph(self) -> DependencyGraph:
        """Who uses what: declared dependencies and the calls that were seen, from routes and tasks to servers."""
        from uno.core.monitoring.dependencies import build_graph

        return build_graph(self)

    # -- the tick --------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener()`` on the monitor's thread after each tick; it must return at once. Returns what ends it."""
        if not callable(listener):
            raise TypeError(f"subscribe takes a function without arguments, not {type(listener).__name__}")
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(known for known in self._listeners if known is not listener)

        return unsubscribe

    def on_stop(self, stopper: Callable[[float], object]) -> None:
        """Call ``stopper(seconds)`` in stop(), while the last values can still be read; it may take so long."""
        with self._lock:
            self._stoppers = (*self._stoppers, stopper)

    def tick(self) -> None:
        """Read every resource and freeze all series at one time. The monitor's thread does it; tests may."""
        with self._tick_lock:
            if self._sampler.stopped_here():
                return
            began, cpu = time.perf_counter(), time.thread_time()
            self._install_hooks({resource.driver for resource in self.manager})
            self._discover_new()
            self._sampler.run(list(self.collection.jobs.values()))
            now = self.clock.now()
            self._aliases.feed()
            self._watch_self()
            frame = self.store.tick(now)
            self._awaited.step(self.manager)
            shown = self._guarded("sharing with other workers", partial(self.sharing.tick, frame))
            self._guarded("history", partial(self.history.append, shown) if shown else list)
            resources = {resource.id: resource.type for resource in self.manager}
            changes = self.alerts.evaluate(frame, resources, self._explain)
            if self._anomalies is not None:
                changes += self._guarded("anomaly detector", partial(self._anomalies.step, frame)) or []
            self.health.update(now, self.alerts.firing())
            self.alerts.deliver(changes)
            self.callers.step(now, self.manager, self.stat_of, self.store)
            self._guarded("talk with other workers", self.team.tick)
            for listener in self._listeners:
                try:
                    listener()
                except Exception:
                    log.exception("a listener failed")
            self.tick_seconds = time.perf_counter() - began
            self._cpu.value += time.thread_time() - cpu

    def _guarded(self, part: str, step: Callable[[], T]) -> T | None:
        """Let a part that may be another's do its step of a tick; when it fails, the rest of the tick goes on."""
        try:
            result = step()
        except Exception:
            if part not in self._failing:
                self._failing.add(part)
                log.exception("the %s failed; alerts and health go on without it", part)
            return None
        self._failing.discard(part)
        return result

    def freeze(self) -> None:
        """Bring what is shown to this moment as far as memory tells, touching no resource: what the application
        recorded while the monitor does not run, the totals of other workers while it does."""
        if self.running:
            self.sharing.refresh(self.clock.now())
        elif self._tick_lock.acquire(timeout=0.1):
            try:
                self.store.tick(self.clock.now())
            finally:
                self._tick_lock.release()

    def _install_hooks(self, in_use: Container[object] = ()) -> None:
        with self._lock:
            if not self._sampler.stopped_here():  # stop() has taken them off
                self.hooks.install(in_use)

    def _discover_new(self) -> None:
        self.manager.sweep()
        for resource in [
            r for r in self._built_in if isinstance(r.target, LoopTarget) and r.target.loop is None
        ]:
            self._built_in.remove(resource)
            if resource in self.manager:
                self.manager.unregister(resource)
        if self.discovery.types is None or self.discovery.types:
            now = time.monotonic()
            names = now - self._names_at >= NAMES_EVERY
            if names:
                self._names_at = now
            self.discovery.follow(names=names)

    def _watch_self(self) -> None:
        batch = Batch(SELF)
        put = batch.put
        put(STANDARD["uno.monitor.tick.duration"], self.tick_seconds)
        put(STANDARD["uno.monitor.cpu.time"], self._cpu)
        put(STANDARD["uno.monitor.series"], len(self.store))
        put(STANDARD["uno.monitor.series.refused"], self.store.refused)
        put(STANDARD["uno.monitor.history.size"], self.history.stats().bytes)
        put(STANDARD["uno.monitor.missed_ticks"], self._sampler.missed)
        put(STANDARD["uno.hook.failures"], failures.cell)
        for off in self.hooks.off():
            put(STANDARD["uno.hook.off"], 1, {"adapter": off.adapter, "reason": off.reason})
        for (resource, reason), cell in list(self.collection.failures.items()):
            put(STANDARD["uno.collect.failures"], cell, {"target": resource, "reason": reason})
        for what in ("overflow", "refused"):
            told: dict[str, int] = {}
            for metric in list(self._metrics.values()):
                number = metric.overflowed if what == "overflow" else getattr(metric, "refused", 0)
                if number:
                    told[metric.name] = told.get(metric.name, 0) + number
            for name, number in told.items():
                put(STANDARD[f"uno.metric.{what}"], number, {"metric": name})
        self.store.commit(batch)

    def cpu_ratio(self) -> float | None:
        """Cores that monitoring uses on its own threads, at the last tick."""
        found = self.store.select(SELF, "uno.monitor.cpu.time")
        return self.store.value(found[0], "rate") if found else None

    # -- fork ------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """In the process that forks: let the first tick end, which imports what the child needs whole."""
        self._sampler.before_fork()

    def reinit_after_fork(self) -> None:
        """In a forked child: renew the locks and, when the parent's monitor ran, run here too."""
        was_running = self._sampler.was_running_before_fork()
        self._lock, self._life_lock, self._tick_lock = threading.RLock(), threading.RLock(), threading.RLock()
        while self._servers:
            self._servers.pop().abandon()
        for part in (self.manager, self.store, self.alerts, self.collection, self.discovery, self._sampler):
            part.reinit_after_fork()
        if self._history is not None and hasattr(self._history, "reinit_after_fork"):
            self._history.reinit_after_fork()
        self.store.frame = None
        self._listeners = ()
        for resource in [r for r in self.manager if isinstance(r.target, LoopTarget)]:
            self.manager.unregister(resource)  # the parent's loop does not run here
        self._built_in = [r for r in self._built_in if r in self.manager]
        for metric in self._metrics.values():
            metric.reinit_after_fork()
        self.sharing.reinit_after_fork(was_running=was_running)
        if was_running:
            self.sharing.join(self.stop, self.history)
            self._sampler.start()


def _watch(loop: LoopTarget) -> float:
    return loop.watch(time.monotonic())


def _weak_listener(monitor: ResourceMonitor) -> Callable[[str, Resource], None]:
    reference = weakref.ref(monitor)

    def listen(event: str, resource: Resource) -> None:
        living = reference()
        if living is not None:
            if event == "added":
                living._added(resource)
            else:
                living._removed(resource)

    return listen


#: At-fork handlers cannot be taken back, so there is one for the process, which knows the living monitors weakly.
_MONITORS: weakref.WeakSet[ResourceMonitor] = weakref.WeakSet()


def _before_fork() -> None:
    for monitor in list(_MONITORS):
        monitor.before_fork()


def _after_fork() -> None:
    for monitor in list(_MONITORS):
        try:
            monitor.reinit_after_fork()
        except Exception:
            log.exception("monitoring could not be resumed after fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
