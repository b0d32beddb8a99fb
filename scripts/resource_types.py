"""What is in docs/resource-types.md? Prints the page from the declarations in the code: ``make docs`` writes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator

from uno.core.monitoring.alerts import human
from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.names import STANDARD, short_names, wire_label, wire_name
from uno.core.monitoring.resource_types import load
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor

HEAD = """\
# Resource types

<!-- Written by `make docs` from the declarations in src/uno/core/monitoring/resource_types. -->

What uno recognises, what it measures and what it is called. A resource is recognised by the dotted name of its class,
subclasses included. Metrics have their name in Python (`monitor.read(id, name)`), the Prometheus name of the same, and
short names, which are good wherever a metric is named. Every series has the label `resource` as well.

How a resource is found:

- **by its use**: all that live when discovery begins; later ones when they are first used, or soon after a module of
  the application holds them by a name.
- **by its name**: where a module of the application holds it, directly or up to three steps inside. Libraries have many
  of their own.
- **once it is set up**: by `setup_monitoring` ([requests](http-metrics.md)), or by a library that records through
  OpenTelemetry ([how](from-opentelemetry.md)); the metrics of the latter are the library's own.
- **always**: it is there as soon as the monitor runs.

Whatever is found or not, `manager.register(object)` takes it. A library in a version that was not tested is only read:
no hooks, no pings; what they would tell is unknown, and the resource's page, the log and `uno.hook.off` say so. So is a
library whose classes have an unexpected shape. When a hook fails 20 times, all hooks of its type come off.
"""

TAIL = """\

## custom

Any other object, or a function: every number that it returns is a gauge. See
[Resources of your own](custom-resources.md).
"""

UNITS = {"1": "ratio", "s": "seconds", "By": "bytes"}


def page() -> str:
    """The whole page."""
    groups: dict[tuple[str, tuple[str, ...]], list[ResourceTypeMonitor]] = {}
    for kind in load().kinds:
        if type(kind).__module__.startswith("uno."):  # no plug-in
            names = tuple(sorted(kind.specs))
            groups.setdefault((kind.resource_type, names), []).append(kind)
    lines = [HEAD]
    for (resource_type, _), kinds in sorted(groups.items(), key=lambda group: group[0][0]):
        lines += section(resource_type, kinds)
    lines.append(TAIL)
    lines += ["## The monitor itself", "", "The resource `uno` tells what monitoring costs.", ""]
    own = [
        spec
        for spec in STANDARD.values()
        if spec.name.startswith(("uno.monitor.", "uno.collect.", "uno.hook."))
    ]
    lines += table("uno", own)
    return "\n".join(lines) + "\n"


def section(resource_type: str, kinds: list[ResourceTypeMonitor]) -> Iterator[str]:
    """One type of resource, read from libraries that give the same metrics."""
    yield f"\n## {resource_type}: {', '.join(dict.fromkeys(map(library, kinds)))}\n"
    yield "| class | tested with | found | |"
    yield "|---|---|---|---|"
    notes = []
    for kind in kinds:
        what, *more = (inspect.getdoc(type(kind)) or "").replace("``", "`").split("\n\n")
        notes += more
        classes = [
            name.lstrip("_") for name in kind.targets if not name.startswith("uno.") and "._" not in name
        ]
        shown = "<br>".join(f"`{name}`" for name in classes)
        yield f"| {shown} | {kind.tested and f'`{kind.tested}`'} | {found(kind)} | {what} |"
    yield ""
    for note in dict.fromkeys(notes):
        yield note + "\n"
    yield from table(resource_type, kinds[0].specs.values())
    levels = dict.fromkeys(level(kind, *given) for kind in kinds for given in kind.thresholds)
    if levels:
        yield "\nLevels, unless you set others:\n"
        yield from levels


def library(kind: ResourceTypeMonitor) -> str:
    """The library as its users call it."""
    given = {"http_server": "ASGI applications", "opentelemetry": "OpenTelemetry's API"}
    if kind.resource_type in given:
        return given[kind.resource_type]
    if found(kind) == "always" or kind.library.partition(".")[0] in sys.stdlib_module_names:
        return "part of Python"
    return {
        "sqlalchemy": "SQLAlchemy",
        "celery": "Celery",
        "confluent_kafka": "confluent-kafka",
        "aio_pika": "aio-pika",
        "anyio._backends._asyncio": "anyio",
        "apscheduler": "APScheduler",
        "grpc": "gRPC",
        "kafka": "kafka-python",
        "psycopg_pool": "psycopg 3",
        "pymongo": "PyMongo",
        "redis": "redis-py",
        "rq": "RQ",
    }.get(kind.library, kind.library)


def found(kind: ResourceTypeMonitor) -> str:
    """How a resource is found."""
    if kind.resource_type in ("http_server", "opentelemetry"):
        return "once it is set up"
    if all(name.startswith("uno.") for name in kind.targets):
        return "always"
    return "by its name" if kind.only_named else "by its use"


def table(resource_type: str, specs: Iterable[Spec]) -> Iterator[str]:
    """The metrics."""
    yield "| metric | in Prometheus | short names | kind | unit | labels | what it says |"
    yield "|---|---|---|---|---|---|---|"
    for spec in specs:
        short = ", ".join(f"`{name}`" for name in short_names(spec.name, resource_type))
        labels = ", ".join(f"`{wire_label(name)}`" for name in spec.labels)
        unit = UNITS.get(spec.unit, spec.unit.strip("{}").replace("_", " "))
        yield (
            f"| `{spec.name}` | `{wire_name(spec)}` | {short} | {spec.kind} | {unit} | {labels} | {spec.description} |"
        )


def level(kind: ResourceTypeMonitor, metric: str, threshold: Threshold) -> str:
    """A default threshold in words."""
    spec = kind.specs[metric]
    side = "above" if threshold.above else "below"
    stat = threshold.stat or {"counter": "rate", "histogram": "p95"}.get(spec.kind, "")
    told = [
        f"{name} {side} {human(limit, spec.unit, stat == 'rate')}"
        for name in ("warning", "critical")
        if (limit := getattr(threshold, name)) is not None
    ]
    return f"- `{metric}`{f' ({stat})' if stat else ''}: {', '.join(told)}"


if __name__ == "__main__":
    sys.stdout.write(page())
