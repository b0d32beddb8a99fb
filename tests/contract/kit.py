"""What must hold for every resource type? What uno.testing has, and what only the tests of ours need."""

from __future__ import annotations

import gc

from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import Resource
from uno.testing import (
    Watched,
    dies,
    everything_said,
    hooked,
    meets_contract,
    names_without_series,
    soon,
    unknown,
    wait_until,
    watching,
)

__all__ = [
    "CLOSE",
    "CREATE",
    "DURATION",
    "IDLE",
    "PENDING",
    "STATE",
    "TIMEOUTS",
    "USE",
    "USED",
    "WAIT",
    "Watched",
    "dies",
    "everything_said",
    "gone",
    "hooked",
    "meets_contract",
    "names_without_series",
    "soon",
    "unknown",
    "wait_until",
    "watching",
]

#: Names that the tests of all connection pools use.
WAIT, USE, DURATION = "connection_wait_time", "connection_use_time", "query_duration"
CREATE, PENDING, TIMEOUTS = "db.client.connection.create_time", "connections_waiting", "connection_timeouts"
STATE = "db.client.connection.state"
USED, IDLE = {STATE: "used"}, {STATE: "idle"}
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


async def gone(monitor: ResourceMonitor, resource: Resource) -> None:
    """What the test has dropped leaves, while the event loop goes on."""
    await soon(lambda: (gc.collect(), resource.id not in monitor.manager)[1], "unregistered")
