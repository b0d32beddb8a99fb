"""How many connections does the server itself take, and how many are open there?

That is what the pools of all workers together must not exceed, and what no pool knows. It is asked once a minute, when
the server has just answered, on a connection of the pool that is idle while others are free: never on a new one. Who
may not ask, or whose server does not know, has a gap.
"""

from __future__ import annotations

from typing import Any

from uno.core.monitoring.names import pick
from uno.core.records import NamedTuple

ASK_SECONDS = 60.0
#: An answer is shown for so long: a pool that is used up cannot ask, and that is when the answer is wanted.
SHOWN_SECONDS = 180.0
DEADLINE = 1.5

METRICS = pick(
    "uno.db.server.connection.max", "uno.db.server.connection.reserved", "uno.db.server.connection.count"
)
#: numbackends is told to every user, what pg_stat_activity tells is not. ``reserved_connections`` came with 16.
POSTGRESQL = (
    "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
    " + coalesce(current_setting('reserved_connections', true), '0')::int,"
    " (SELECT sum(numbackends) FROM pg_stat_database)::int"
)
#: Name and value each. One more than max_connections is taken, from an administrator: none is reserved.
MYSQL = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name = 'max_connections'",
    "SHOW GLOBAL STATUS WHERE Variable_name = 'Threads_connected'",
)


class ServerConnections(NamedTuple):
    """What a server says: the connections that it takes, those of them for administrators alone, those open now."""

    limit: float | None = None
    reserved: float | None = None
    opened: float | None = None


def told_by_postgresql(row: Any) -> ServerConnections:
    """The answer to POSTGRESQL."""
    return ServerConnections(*row)


def told_by_mysql(limit: Any, opened: Any) -> ServerConnections:
    """The answers to MYSQL."""
    return ServerConnections(float(limit[1]), None, float(opened[1]))


def asked_by_cursor(cursor: Any, system: str) -> ServerConnections:
    """Ask through a cursor of the DB-API that gives tuples."""
    if system == "postgresql":
        cursor.execute(POSTGRESQL)
        return told_by_postgresql(cursor.fetchone())
    found = []
    for question in MYSQL:
        cursor.execute(question)
        found.append(cursor.fetchone())
    return told_by_mysql(*found)
