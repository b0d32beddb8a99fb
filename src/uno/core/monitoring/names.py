"""What are the standard metrics called?

One table: the model's name (OpenTelemetry semantic conventions where they have one, "own" names elsewhere),
its unit, the words for it, and the short names that people may use instead. Everything else (help text, page
titles, units, the Prometheus form) is derived from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from uno.core.monitoring.metrics import Merge, Spec

_STATE = "db.client.connection.state"

_TABLE: tuple[Spec, ...] = (
    # every resource
    Spec("uno.resource.utilization", "gauge", "Share of the limit that is in use", "1", (), "In use"),
    Spec("uno.resource.errors", "counter", "Operations that failed", "{error}", (), "Errors"),
    # databases and Redis
    Spec("db.client.connection.count", "gauge", "Connections of the pool by state", "{connection}", (_STATE,),
         "Connections"),
    Spec("db.client.connection.max", "gauge", "Most connections that the pool may open", "{connection}", (),
         "Connection limit"),
    Spec("db.client.connection.pending_requests", "gauge", "Requests that wait for a connection", "{request}", (),
         "Waiting"),
    Spec("db.client.connection.timeouts", "counter", "Requests that waited in vain", "{timeout}", (), "Timeouts"),
    Spec("db.client.connection.wait_time", "histogram", "Time to get a connection from the pool", "s", (),
         "Wait for a connection"),
    Spec("db.client.connection.use_time", "histogram", "Time between taking and returning a connection", "s", (),
         "Connection held"),
    Spec("db.client.connection.create_time", "histogram", "Time to open a connection", "s", (), "Connect"),
    Spec("uno.connection.leaked", "counter", "Connections that were dropped without being returned", "{connection}", (),
         "Leaked"),
    Spec("uno.db.client.connection.oldest_use", "gauge", "How long the longest-held connection is out", "s", (),
         "Longest held"),
    Spec("db.client.operation.duration", "histogram", "Duration of queries and commands", "s", (), "Query time"),
    Spec("uno.db.client.slow_operations", "counter", "Queries slower than the slow limit", "{query}", (),
         "Slow queries"),
    Spec("uno.db.server.connection.max", "gauge", "Most connections that the server itself takes, from anybody",
         "{connection}", (), "Server's limit"),
    Spec("uno.db.server.connection.reserved", "gauge", "Connections that the server keeps for its administrators",
         "{connection}", (), "Server's reserve"),
    Spec("uno.db.server.connection.count", "gauge", "Connections that are open at the server, from anybody",
         "{connection}", (), "Open at the server"),
    # web applications
    Spec("http.server.request.duration", "histogram", "Duration of HTTP server requests", "s",
         ("http.request.method", "http.route", "http.response.status_code"), "Request time"),
    Spec("http.server.active_requests", "gauge", "HTTP server requests in progress", "{request}",
         ("http.request.method",), "In flight"),
    Spec("uno.http.server.error_ratio", "gauge", "Share of the requests that failed in the last 10 s", "1", (),
         "Failing"),
    # nodes of a cluster
    Spec("uno.redis.node.connections", "gauge", "Connections to each node of a cluster", "{connection}",
         ("node", "state"), "Connections by node"),
    Spec("uno.redis.node.duration", "histogram", "Duration of commands by node", "s", ("node",),
         "Command time by node"),
    Spec("uno.redis.node.errors", "counter", "Commands that failed by node", "{error}", ("node",), "Errors by node"),
    # HTTP clients
    Spec("http.client.request.duration", "histogram", "Duration of requests", "s", (), "Request time"),
    Spec("http.client.requests", "counter", "Requests by outcome: 2xx ... 5xx or the kind of error", "{request}",
         ("outcome",), "Requests"),
    Spec("http.client.active_requests", "gauge", "Requests in flight", "{request}", (), "In flight"),
    Spec("uno.http.client.oldest_request", "gauge", "How long the oldest request in flight has had no answer", "s", (),
         "Oldest in flight"),
    Spec("http.client.open_connections", "gauge", "Open connections by state", "{connection}",
         ("http.connection.state",), "Connections"),
    Spec("http.client.connection.max", "gauge", "Most connections that the pool may open", "{connection}", (),
         "Connection limit"),
    Spec("http.client.pending_requests", "gauge", "Requests that wait for a connection", "{request}", (), "Waiting"),
    Spec("http.client.wait_time", "histogram", "Time to get a connection from the pool", "s", (),
         "Wait for a connection"),
    Spec("http.client.connection.timeouts", "counter", "Requests that waited in vain for a connection", "{timeout}",
         (), "Timeouts"),
    Spec("http.client.connection.create_time", "histogram", "Time to open a connection", "s", (), "Connect"),
    Spec("http.client.connection.use_time", "histogram", "Time between taking and returning a connection", "s", (),
         "Connection held"),
    Spec("uno.http.client.connection.discarded", "counter",
         "Connections that were closed since the pool was full when they were returned", "{connection}", (),
         "Discarded"),
    Spec("uno.http.client.error_ratio", "gauge", "Share of the requests that failed in the last 10 s", "1", (),
         "Failing"),
    # gRPC
    Spec("rpc.client.call.duration", "histogram", "Duration of calls", "s", (), "Call time"),
    Spec("rpc.client.calls", "counter", "Calls by status code", "{call}", ("outcome",), "Calls"),
    Spec("rpc.client.active_calls", "gauge", "Calls in flight", "{call}", (), "In flight"),
    Spec("uno.grpc.channel.state", "gauge", "1 for the state that the channel is in, 0 for the others", "", ("state",),
         "State"),
    # thread pools
    Spec("thread_pool.thread.count", "gauge", "Threads by state", "{thread}", ("state",), "Threads"),
    Spec("thread_pool.thread.max", "gauge", "Most threads that the pool may start", "{thread}", (), "Thread limit"),
    Spec("thread_pool.queue.size", "gauge", "Tasks that wait for a thread", "{task}", (), "Queued"),
    Spec("thread_pool.task.wait_time", "histogram", "Time from submit to start", "s", (), "Wait for a thread"),
    Spec("thread_pool.task.duration", "histogram", "Time that tasks run", "s", (), "Task time"),
    Spec("thread_pool.tasks", "counter", "Tasks by outcome", "{task}", ("outcome",), "Tasks"),
    # pools of processes
    Spec("process_pool.process.count", "gauge", "Worker processes by state", "{process}", ("state",), "Processes"),
    Spec("process_pool.process.max", "gauge", "Most processes that the pool may start", "{process}", (),
         "Process limit"),
    Spec("process_pool.queue.size", "gauge", "Tasks that wait for a process", "{task}", (), "Queued"),
    Spec("process_pool.task.wait_time", "histogram", "Time from submit to start, told by the order of results", "s",
         (), "Wait for a process"),
    Spec("process_pool.task.duration", "histogram", "Time that tasks run, told by the order of results", "s", (),
         "Task time"),
    Spec("process_pool.task.total_time", "histogram", "Time from submit to result", "s", (), "Total time"),
    Spec("process_pool.tasks", "counter", "Tasks by outcome", "{task}", ("outcome",), "Tasks"),
    # capacity limiters
    Spec("limiter.token.count", "gauge", "Tokens of the limiter by state", "{token}", ("state",), "Tokens"),
    Spec("limiter.token.max", "gauge", "Most tokens that may be borrowed at once", "{token}", (), "Limit"),
    Spec("limiter.waiting", "gauge", "Tasks that wait for a token", "{task}", (), "Waiting"),
    Spec("limiter.wait_time", "histogram", "Time to get a token", "s", (), "Wait for a token"),
    Spec("limiter.use_time", "histogram", "Time between borrowing and giving back", "s", (), "Token held"),
    Spec("limiter.oldest_use", "gauge", "How long the longest-held token is out", "s", (), "Longest held"),
    # locks and semaphores
    Spec("lock.holders", "gauge", "How often the lock is held at present", "{holder}", (), "Held"),
    Spec("lock.max", "gauge", "Most holders at once", "{holder}", (), "Limit"),
    Spec("lock.waiting", "gauge", "Who waits for the lock", "{waiter}", (), "Waiting"),
    Spec("lock.acquired", "counter", "Times that the lock was taken", "{acquisition}", (), "Taken"),
    Spec("lock.timeouts", "counter", "Times that it was waited for in vain", "{timeout}", (), "Timeouts"),
    Spec("lock.wait_time", "histogram", "Time to take the lock", "s", (), "Wait for the lock"),
    Spec("lock.hold_time", "histogram", "Time between taking and releasing", "s", (), "Lock held"),
    Spec("lock.oldest_hold", "gauge", "How long the longest holder has held it", "s", (), "Longest held"),
    # task queues
    Spec("task_queue.size", "gauge", "Tasks by state", "{task}", ("state",), "Depth"),
    Spec("task_queue.max", "gauge", "Most tasks that the queue holds", "{task}", (), "Limit"),
    Spec("task_queue.oldest_age", "gauge", "Age of the oldest waiting task", "s", (), "Oldest"),
    Spec("task_queue.waiting", "gauge", "Producers or consumers that wait", "{waiter}", ("side",), "Waiting"),
    Spec("task_queue.enqueued", "counter", "Tasks that were put in", "{task}", (), "Enqueued"),
    Spec("task_queue.processed", "counter", "Tasks by outcome", "{task}", ("outcome",), "Processed"),
    Spec("task_queue.task.wait_time", "histogram", "Time from put to get", "s", (), "Wait in queue"),
    Spec("task_queue.task.duration", "histogram", "Time that tasks run", "s", (), "Task time"),
    Spec("task_queue.worker.count", "gauge", "Workers that take tasks", "{worker}", (), "Workers"),
    # files
    Spec("process.unix.file_descriptor.count", "gauge", "Open file descriptors", "{file_descriptor}", (), "Open"),
    Spec("process.unix.file_descriptor.max", "gauge", "Most file descriptors that may be open", "{file_descriptor}",
         (), "Limit"),
    Spec("file.descriptors", "gauge", "Open file descriptors by what they lead to", "{file_descriptor}", ("kind",),
         "Open by kind"),
    Spec("file.sockets", "gauge", "Sockets by the other end: the server's host:port, or all clients of a port",
         "{socket}", ("peer",), "Sockets by peer"),
    Spec("file.io", "counter", "Bytes read and written by the process", "By", ("direction",), "Throughput"),
    Spec("file.operations", "counter", "Read and write calls of the process", "{operation}", ("direction",),
         "Operations"),
    # message brokers
    Spec("messaging.client.sent.messages", "counter", "Messages published", "{message}", (), "Published"),
    Spec("messaging.client.consumed.messages", "counter", "Messages taken", "{message}", (), "Consumed"),
    Spec("messaging.client.operation.duration", "histogram", "Duration of publishing", "s", (), "Publish time"),
    Spec("messaging.process.duration", "histogram", "Time that a consumer works on a message", "s", (),
         "Processing time"),
    Spec("messaging.destination.depth", "gauge", "Messages that are ready in a queue", "{message}",
         ("messaging.destination.name",), "Ready"),
    Spec("messaging.consumer.count", "gauge", "Consumers of a queue", "{consumer}", ("messaging.destination.name",),
         "Consumers"),
    Spec("messaging.client.connection.up", "gauge", "1 while connected, 0 while not", "", (), "Connected"),
    Spec("messaging.channel.count", "gauge", "Open channels", "{channel}", (), "Channels"),
    Spec("uno.messaging.consumer.lag", "gauge", "Messages that a consumer or its group has not been given yet",
         "{message}", ("messaging.destination.name", "messaging.consumer.group.name"), "Lag"),
    Spec("uno.messaging.consumer.pending", "gauge", "Messages that were given out and not acknowledged yet",
         "{message}", ("messaging.destination.name", "messaging.consumer.group.name"), "Unacknowledged"),
    Spec("uno.messaging.consumer.utilization", "gauge", "Share of the time in which consumers took what was there at "
         "once", "1", ("messaging.destination.name",), "Consumers keep up"),
    Spec("uno.messaging.client.buffered", "gauge", "Messages that the client holds: in, until they are taken; out, "
         "until the broker has them", "{message}", ("direction",), "Buffered"),
    # the process and its event loops
    Spec("process.cpu.time", "counter", "CPU time used, user and system", "s", (), "CPU time"),
    Spec("process.cpu.utilization", "gauge", "Cores in use", "{cpu}", (), "CPU"),
    Spec("process.memory.usage", "gauge", "Resident memory", "By", (), "Memory"),
    Spec("process.thread.count", "gauge", "Threads", "{thread}", (), "Threads"),
    Spec("process.uptime", "gauge", "Time since the process started", "s", (), "Uptime"),
    Spec("process.context_switches", "counter", "Times that a thread gave way or was made to", "{context_switch}",
         ("process.context_switch.type",), "Context switches"),
    Spec("process.paging.faults", "counter", "Page faults; major ones read from a disk", "{fault}",
         ("system.paging.fault.type",), "Page faults"),
    Spec("cpython.gc.pauses", "histogram", "Pauses of the garbage collector", "s", (), "GC pauses"),
    Spec("cpython.gc.collections", "counter", "Runs of the garbage collector by generation", "{collection}",
         ("cpython.gc.generation",), "GC runs"),
    Spec("cpython.gc.uncollectable_objects", "counter", "Objects that the garbage collector could not free",
         "{object}", ("cpython.gc.generation",), "Uncollectable"),
    # the container, on Linux
    Spec("container.memory.usage", "gauge", "Memory of the container without unused page cache", "By", (),
         "Container memory"),
    Spec("container.memory.limit", "gauge", "Most memory that the container may use", "By", (), "Memory limit"),
    Spec("container.memory.oom_kills", "counter", "Processes of the container killed for want of memory", "{process}",
         (), "OOM kills"),
    Spec("container.cpu.limit", "gauge", "Cores that the container may use", "{cpu}", (), "CPU limit"),
    Spec("container.cpu.throttled_time", "counter", "Time that the container was stopped at its CPU quota", "s", (),
         "Throttled"),
    Spec("container.cpu.throttled_ratio", "gauge", "Share of the periods in which the container was stopped", "1", (),
         "Throttled"),
    Spec("container.pressure.stall_time", "counter", "Time that some or all work of the container stood still", "s",
         ("pressure.resource", "pressure.kind"), "Pressure"),
    # the machine
    Spec("system.cpu.utilization", "gauge", "Share of all processors that is busy", "1", (), "CPU"),
    Spec("system.cpu.load_average.1m", "gauge", "Threads that run or want to, over a minute", "{thread}", (), "Load"),
    Spec("system.cpu.logical.count", "gauge", "Processors", "{cpu}", (), "Processors"),
    Spec("system.memory.utilization", "gauge", "Share of the memory that is not available", "1", (), "Memory"),
    Spec("system.memory.limit", "gauge", "Memory of the machine", "By", (), "Memory in all"),
    Spec("system.paging.utilization", "gauge", "Share of the swap space in use", "1", (), "Swap"),
    Spec("system.filesystem.utilization", "gauge", "Share of a file system in use", "1",
         ("system.filesystem.mountpoint",), "Disk full"),
    Spec("system.filesystem.limit", "gauge", "Size of a file system", "By", ("system.filesystem.mountpoint",),
         "Disk size"),
    Spec("system.disk.io", "counter", "Bytes read from and written to disks", "By",
         ("system.device", "disk.io.direction"), "Disk throughput"),
    Spec("system.disk.operations", "counter", "Reads and writes of disks", "{operation}",
         ("system.device", "disk.io.direction"), "Disk operations"),
    Spec("system.disk.io_time", "counter", "Time that a disk was busy", "s", ("system.device",), "Disk busy"),
    Spec("system.pressure.stall_time", "counter", "Time that some or all work of the machine stood still", "s",
         ("pressure.resource", "pressure.kind"), "Pressure"),
    Spec("uno.asyncio.loop.lag", "histogram", "How late the event loop runs what is due", "s", (), "Lag"),
    Spec("uno.asyncio.loop.blocked", "gauge", "How long the event loop has been blocked", "s", (), "Blocked"),
    Spec("uno.asyncio.loop.tasks", "gauge", "Tasks of the event loop", "{task}", (), "Tasks"),
    # the monitor itself
    Spec("uno.monitor.tick.duration", "gauge", "Duration of the last tick", "s", (), "Tick"),
    Spec("uno.monitor.cpu.time", "counter", "CPU time that monitoring used on its own threads", "s", (), "CPU time"),
    Spec("uno.monitor.series", "gauge", "Series that are kept", "{series}", (), "Series"),
    Spec("uno.monitor.series.refused", "counter", "Values left out since a bound on series is reached", "{value}", (),
         "Refused"),
    Spec("uno.monitor.history.size", "gauge", "Memory that the history takes", "By", (), "History"),
    Spec("uno.monitor.missed_ticks", "counter", "Ticks that could not run in time", "{tick}", (), "Missed ticks"),
    Spec("uno.collect.failures", "counter", "Collections that gave nothing", "{failure}", ("target", "reason"),
         "Failed collections"),
    Spec("uno.otlp.exported", "counter", "Data points that an OTLP receiver took", "{data_point}", (), "Pushed"),
    Spec("uno.otlp.dropped", "counter", "Data points that could not be pushed", "{data_point}", ("reason",),
         "Not pushed"),
    Spec("uno.otlp.failures", "counter", "Requests to an OTLP receiver that failed", "{request}", ("reason",),
         "Failed pushes"),
    Spec("uno.hook.failures", "counter", "Hooks that failed; the application's call went through", "{failure}", (),
         "Failed hooks"),
    Spec("uno.hook.off", "gauge", "1 while the hooks of a resource type are off, and why: its library is only read", "",
         ("adapter", "reason"), "Hooks off"),
    Spec("uno.metric.overflow", "counter", "Recordings whose labels were too many to keep apart", "{recording}",
         ("metric",), "Label overflow"),
    Spec("uno.metric.refused", "counter", "Observations left out, for they were not finite numbers",
         "{observation}", ("metric",), "Refused"),
)  # fmt: skip

#: Gauges that are not added up over the workers of a service: what a broker counts is the same for all who ask it.
_MERGED: dict[str, Merge] = {
    "uno.db.server.connection.max": "max",
    "uno.db.server.connection.reserved": "max",
    "uno.db.server.connection.count": "max",
    "messaging.destination.depth": "max",
    "messaging.consumer.count": "max",
    "uno.messaging.consumer.utilization": "max",
    "messaging.client.connection.up": "min",
    "task_queue.worker.count": "max",
    "uno.hook.off": "max",
}


def _merge(spec: Spec) -> Merge:
    """How the values of several workers become one: of ages and shares the worst tells, and all have one machine."""
    if spec.name.startswith(("system.", "container.")) or (spec.kind == "gauge" and spec.unit in ("1", "s")):
        return "max"
    return _MERGED.get(spec.name, "sum")


STANDARD = {spec.name: spec._replace(merge=_merge(spec)) for spec in _TABLE}

#: Families that say what is, rather than how much: the exposition makes them.
STATES = ("uno_resource_info", "uno_resource_health", "uno_alert")

_DB = {
    "connection_pool_usage": "uno.resource.utilization",
    "pool_usage": "uno.resource.utilization",
    "connections": "db.client.connection.count",
    "connections_max": "db.client.connection.max",
    "connections_waiting": "db.client.connection.pending_requests",
    "connection_timeouts": "db.client.connection.timeouts",
    "server_connections": "uno.db.server.connection.count",
    "server_connections_max": "uno.db.server.connection.max",
    "connection_wait_time": "db.client.connection.wait_time",
    "connection_use_time": "db.client.connection.use_time",
    "query_duration": "db.client.operation.duration",
    "operation_duration": "db.client.operation.duration",
    "slow_queries": "uno.db.client.slow_operations",
    "errors": "uno.resource.errors",
}

#: Short names by resource type; ``""`` holds those that every type knows.
SHORT: dict[str, dict[str, str]] = {
    "": {"utilization": "uno.resource.utilization", "errors": "uno.resource.errors"},
    "database": _DB,
    "redis": {
        **_DB,
        "command_duration": "db.client.operation.duration",
        "lag": "uno.messaging.consumer.lag",
        "unacknowledged": "uno.messaging.consumer.pending",
    },
    "http_server": {
        "request_duration": "http.server.request.duration",
        "active_requests": "http.server.active_requests",
        "error_rate": "uno.http.server.error_ratio",
    },
    "http_client": {
        "connection_pool_usage": "uno.resource.utilization",
        "request_duration": "http.client.request.duration",
        "requests": "http.client.requests",
        "active_requests": "http.client.active_requests",
        "connections": "http.client.open_connections",
        "connections_max": "http.client.connection.max",
        "connections_waiting": "http.client.pending_requests",
        "connection_wait_time": "http.client.wait_time",
        "connection_use_time": "http.client.connection.use_time",
        "connection_timeouts": "http.client.connection.timeouts",
        "error_rate": "uno.http.client.error_ratio",
    },
    "grpc_channel": {
        "call_duration": "rpc.client.call.duration",
        "calls": "rpc.client.calls",
        "active_calls": "rpc.client.active_calls",
    },
    "thread_pool": {
        "threads": "thread_pool.thread.count",
        "queue_depth": "thread_pool.queue.size",
        "task_duration": "thread_pool.task.duration",
        "task_wait_time": "thread_pool.task.wait_time",
        "tasks": "thread_pool.tasks",
    },
    "process_pool": {
        "processes": "process_pool.process.count",
        "queue_depth": "process_pool.queue.size",
        "task_duration": "process_pool.task.duration",
        "task_wait_time": "process_pool.task.wait_time",
        "tasks": "process_pool.tasks",
    },
    "limiter": {
        "borrowed": "limiter.token.count",
        "waiting": "limiter.waiting",
        "wait_time": "limiter.wait_time",
    },
    "lock": {"holders": "lock.holders", "waiting": "lock.waiting", "wait_time": "lock.wait_time"},
    "task_queue": {
        "queue_depth": "task_queue.size",
        "oldest_age": "task_queue.oldest_age",
        "processing_time": "task_queue.task.duration",
        "task_duration": "task_queue.task.duration",
        "tasks": "task_queue.processed",
    },
    "file_handle": {
        "open_handles": "process.unix.file_descriptor.count",
        "open_files": "process.unix.file_descriptor.count",
        "throughput": "file.io",
        "io_bytes": "file.io",
        "io_operations": "file.operations",
    },
    "message_broker": {
        "queue_depth": "messaging.destination.depth",
        "consumers": "messaging.consumer.count",
        "messages_sent": "messaging.client.sent.messages",
        "messages_consumed": "messaging.client.consumed.messages",
        "processing_time": "messaging.process.duration",
        "lag": "uno.messaging.consumer.lag",
        "unacknowledged": "uno.messaging.consumer.pending",
        "buffered": "uno.messaging.client.buffered",
    },
    "event_loop": {
        "lag": "uno.asyncio.loop.lag",
        "tasks": "uno.asyncio.loop.tasks",
        "blocked": "uno.asyncio.loop.blocked",
    },
    "process": {
        "cpu": "process.cpu.utilization",
        "memory": "process.memory.usage",
        "threads": "process.thread.count",
        "context_switches": "process.context_switches",
    },
    "host": {
        "cpu": "system.cpu.utilization",
        "load": "system.cpu.load_average.1m",
        "memory": "system.memory.utilization",
        "disk_usage": "system.filesystem.utilization",
    },
}

#: The words of units (UCUM), as they end a Prometheus name: those that OpenTelemetry's rules for Prometheus have.
UNIT_WORDS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "g": "grams", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "Cel": "celsius",
    "Hz": "hertz", "%": "percent", "1": "ratio",
}  # fmt: skip
_UNWIRED = re.compile(r"[^A-Za-z0-9_:]")


def pick(*names: str) -> tuple[Spec, ...]:
    """The standard metrics with these names."""
    return tuple(STANDARD[name] for name in names)


def resolve(name: str, resource_type: str) -> str:
    """The model's name for ``name``, which may be a short name, a Prometheus name or already the model's name.

    A name that nobody knows is returned as it is: it may be the application's own.
    """
    if name in STANDARD:
        return name
    for table in (SHORT.get(resource_type, {}), SHORT[""]):
        if name in table:
            return table[name]
    for spec in STANDARD.values():
        if wire_name(spec) == name:
            return spec.name
    return name


def short_names(name: str, resource_type: str) -> list[str]:
    """The short names of the metric ``name`` for resources of ``resource_type``."""
    tables = (SHORT.get(resource_type, {}), SHORT[""])
    return sorted({short for table in tables for short, model in table.items() if model == name})


def line_names(spec: Spec) -> frozenset[str]:
    """The names that the lines of a metric have in Prometheus form; no two metrics may share one."""
    name = wire_name(spec)
    if spec.kind != "histogram":
        return frozenset((name,))
    return frozenset((name, *(f"{name}_{part}" for part in ("bucket", "sum", "count"))))


def clash(spec: Spec, others: Iterable[Spec]) -> str:
    """Why ``spec`` cannot stand beside ``others``, in words; "" when it can."""
    name, lines = wire_name(spec), line_names(spec)
    if lines & set(STATES):
        return f"{name!r} is a name of uno's own; choose another"
    for other in others:
        if other.name == spec.name and other.kind == spec.kind:
            continue
        shared = lines & line_names(other)
        if shared:
            return (
                f"the {spec.kind} {spec.name!r} and the {other.kind} {other.name!r} would both be called "
                f"{min(shared)!r} in Prometheus; choose another name"
            )
    return ""


def as_table() -> str:
    """The standard metrics as the table of docs/names.md."""
    rows = [
        f"| `{spec.name}` | {spec.kind} | {spec.unit.strip('{}') or '-'} "
        f"| {', '.join(f'`{label}`' for label in spec.labels) or '-'} | `{wire_name(spec)}` | {spec.description} |"
        for spec in _TABLE
    ]
    head = ["| model name | kind | unit | labels | Prometheus | what it is |", "|---|---|---|---|---|---|"]
    return "\n".join((*head, *rows))


def wire_label(name: str) -> str:
    """A label's name in Prometheus form."""
    return _UNWIRED.sub("_", name)


def wire_name(spec: Spec) -> str:
    """The metric's name in Prometheus form.

    Names with dots are translated as OpenTelemetry's exporters do it (dots to underscores, the unit and, for
    counters, ``_total`` appended); names without a dot are the application's own and stay verbatim.
    """
    name = _UNWIRED.sub("_", spec.name)
    if not name or name[0].isdigit():
        name = "_" + name
    if "." in spec.name:
        suffix = UNIT_WORDS.get(spec.unit)
        if suffix and not (suffix == "ratio" and spec.kind != "gauge") and not name.endswith("_" + suffix):
            name += "_" + suffix
        if spec.kind == "counter":
            name += "_total"
    return name
