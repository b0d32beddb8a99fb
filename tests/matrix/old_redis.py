"""What may the tests of Redis clients say to versions before 5.3, whose pools want the name of a command?

A plug-in of pytest (``-p tests.matrix.old_redis``) for the environments of those versions.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
import redis.asyncio.connection
import redis.connection


def _named(original: Any) -> Any:
    def get_connection(self: Any, command_name: str = "_", *keys: Any, **options: Any) -> Any:
        return original(self, command_name, *keys, **options)

    return get_connection


for module in (redis.connection, redis.asyncio.connection):
    for cls in (module.ConnectionPool, module.BlockingConnectionPool):
        if "get_connection" in vars(cls):
            setattr(cls, "get_connection", _named(vars(cls)["get_connection"]))  # noqa: B010

if not hasattr(redis.asyncio.Redis, "aclose"):
    redis.asyncio.Redis.aclose = redis.asyncio.Redis.close  # type: ignore[method-assign]
