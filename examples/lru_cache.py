"""How are the caches of functools.lru_cache watched? A type that only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.names import pick
from uno.core.monitoring.resources import ResourceTypeMonitor
from uno.core.resources import Identity, Resource


class LruCacheMonitor(ResourceTypeMonitor):
    """Size, limit, hits and misses of a function's cache."""

    resource_type = "cache"
    targets = ("functools._lru_cache_wrapper",)
    library = "functools"
    only_named = True  # libraries have hundreds
    blocking = False
    metrics = (
        *pick("uno.resource.utilization"),
        Spec("cache.entries", "gauge", "Entries that are kept", "{entry}", (), "Entries"),
        Spec("cache.requests", "counter", "Calls by outcome: hit or miss", "{call}", ("outcome",), "Calls"),
    )
    headline = ("uno.resource.utilization", "cache.requests", "cache.entries")

    def identify(self, target: Any) -> Identity:
        return Identity(getattr(target, "__qualname__", "cache"))

    def collect_metrics(self, resource: Resource) -> None:
        info = resource.target.cache_info()
        # Without a limit there is no share of it: unknown, not 0.
        self.update_metric("uno.resource.utilization", info.currsize / info.maxsize if info.maxsize else None)
        self.update_metric("cache.entries", info.currsize)
        self.update_metric("cache.requests", info.hits, {"outcome": "hit"})
        self.update_metric("cache.requests", info.misses, {"outcome": "miss"})

    def capacity(self, target: Any) -> tuple[float, float | None]:
        info = target.cache_info()
        return info.currsize, info.maxsize

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        info = target.cache_info()
        return {"entries": info.currsize, "limit": info.maxsize, "hits": info.hits, "misses": info.misses}

    def explain(self, target: Any, metric: str) -> str:
        info = target.cache_info()
        calls = info.hits + info.misses
        return f"{info.hits:,} of {calls:,} calls were hits" if calls else ""
