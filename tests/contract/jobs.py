"""What must hold for every task queue that lives at a server? Checks that the tests of any of them use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import servers
from tests.contract.kit import Watched, dies, everything_said, hooked
from tests.servers import PASSWORD, wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import _job_queue
from uno.core.resources import ResourceManager

WAITING, RUNNING, SCHEDULED = {"state": "waiting"}, {"state": "running"}, {"state": "scheduled"}


@contextmanager
def watching(*objects: Any) -> Iterator[tuple[ResourceMonitor, list[Watched]]]:
    """A monitor that asks the servers often and gives up soon; afterwards no thread of ours is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_job_queue, "ASK_SECONDS", 0.05)
        patch.setattr(_job_queue, "TIMEOUT", 0.4)
        with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
            yield monitor, [Watched(monitor, obj, f"it{n or ''}") for n, obj in enumerate(objects)]
            for resource in monitor.manager.by_type("task_queue"):
                monitor.manager.unregister(resource.id)
            wait_until(lambda: not our_threads(), 10, "our threads end")


def our_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == _job_queue.THREAD]


def until_counted(watched: Watched, outcome: str, expected: float) -> None:
    """Wait until so many tasks had an outcome."""
    watched.until(expected, "tasks", "total", outcome=outcome)


def check_outages(
    watched: Watched, server: servers.Server, expected: float = 1, *, kill: bool = True
) -> None:
    """A server that is frozen or killed costs what only it knows; all comes back by itself, and nothing is told."""
    watched.until(expected, "queue_depth", **WAITING)
    sent = watched.read("task_queue.enqueued", "total")
    server.freeze()
    watched.until(None, "queue_depth", **WAITING)
    assert watched.read("task_queue.enqueued", "total") == sent
    assert asyncio.run(watched.resource.ping()) is False
    assert "the broker cannot be read" in watched.explain()
    server.thaw()
    watched.until(expected, "queue_depth", **WAITING)
    assert asyncio.run(watched.resource.ping()) is True
    assert PASSWORD not in everything_said(watched.monitor)
    if not kill:
        return
    server.kill()
    watched.until(None, "queue_depth", **WAITING)
    assert asyncio.run(watched.resource.ping()) is False
    assert PASSWORD not in everything_said(watched.monitor)
    server.start()
    wait_until(
        lambda: watched.read("queue_depth", **WAITING) is not None, 15, "a depth again"
    )  # Redis has forgotten
    assert PASSWORD not in everything_said(watched.monitor)


def check_lifetime(make: Callable[[], Any], *modules: str) -> None:
    """Found before and after the monitor starts; dies when dropped; all classes are as they were, twice."""
    assert hooked(*modules) == []
    early = make()
    with watching() as (monitor, _):
        monitor.discover_resources("task_queue")
        assert [r for r in monitor.manager if r.target is early], "found at start"
        installed = hooked(*modules)
        dies(monitor, make, "task_queue")
    assert hooked(*modules) == []
    with watching(early) as (monitor, _), watching(early):
        assert hooked(*modules) == installed
    assert hooked(*modules) == []
