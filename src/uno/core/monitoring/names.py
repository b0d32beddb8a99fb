"""What are the standard metrics called?

One table: the model's name (OpenTelemetry semantic conventions where they have one, "own" names elsewhere),
its unit, the words for it, and the short names that people may use instead. Everything else (help text, page
titles, units, the Prometheus form) is derived from here.
"""

from __future__ import annotations

import re

from uno.core.monitoring.metrics import Spec

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
    Spec("uno.db.client.connection.oldest_use", "gauge", "How long the longest-held connection is out", "s", (),
         "Longest held"),
    Spec("db.client.operation.duration", "histogram", "Duration of queries and commands", "s", (), "Query time"),
    Spec("uno.db.client.slow_operations", "counter", "Queries slower than the slow limit", "{query}", (),
         "Slow queries"),
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
    # the process and its event loops
    Spec("process.cpu.time", "counter", "CPU time used, user and system", "s", (), "CPU time"),
    Spec("process.cpu.utilization", "gauge", "Cores in use", "{cpu}", (), "CPU"),
    Spec("process.memory.usage", "gauge", "Resident memory", "By", (), "Memory"),
    Spec("process.thread.count", "gauge", "Threads", "{thread}", (), "Threads"),
    Spec("process.uptime", "gauge", "Time since the process started", "s", (), "Uptime"),
    Spec("cpython.gc.pauses", "histogram", "Pauses of the garbage collector", "s", (), "GC pauses"),
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
    Spec("uno.hook.failures", "counter", "Hooks that failed; the application's call went through", "{failure}", (),
         "Failed hooks"),
)  # fmt: skip

STANDARD = {spec.name: spec for spec in _TABLE}

_DB = {
    "connection_pool_usage": "uno.resource.utilization",
    "pool_usage": "uno.resource.utilization",
    "connections": "db.client.connection.count",
    "connections_max": "db.client.connection.max",
    "connections_waiting": "db.client.connection.pending_requests",
    "connection_timeouts": "db.client.connection.timeouts",
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
    "redis": {**_DB, "command_duration": "db.client.operation.duration"},
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
    },
}

_SUFFIX = {"s": "seconds", "By": "bytes", "1": "ratio"}
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
        suffix = _SUFFIX.get(spec.unit)
        if suffix and not (suffix == "ratio" and spec.kind != "gauge") and not name.endswith("_" + suffix):
            name += "_" + suffix
        if spec.kind == "counter":
            name += "_total"
    return name
