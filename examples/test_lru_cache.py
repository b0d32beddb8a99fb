"""Are the caches of functools.lru_cache seen as they are?"""

from __future__ import annotations

import functools
from typing import Any

from examples.lru_cache import LruCacheMonitor
from uno.testing import Watched, meets_contract, unknown, watching


def make(limit: int | None = 4) -> Any:
    return functools.lru_cache(maxsize=limit)(lambda x: x * 2)


SHOP_PRICES = make()


def test_the_contract() -> None:
    meets_contract(LruCacheMonitor, make, lambda double: [double(n) for n in (1, 1, 2)])


def test_hits_misses_and_the_limit() -> None:
    with watching(LruCacheMonitor) as monitor:
        double = make()
        cache = Watched(monitor, double)
        for n in (1, 1, 2):
            double(n)
        cache.until(0.5, "uno.resource.utilization")
        cache.until(2, "cache.requests", "total", outcome="miss")
        assert cache.read("cache.requests", "total", outcome="hit") == 1
        assert cache.explain() == "1 of 3 calls were hits"
        double.cache_clear()
        cache.until(0, "cache.entries")


def test_without_a_limit_its_share_is_unknown() -> None:
    with watching(LruCacheMonitor) as monitor:
        double = make(None)
        cache = Watched(monitor, double)
        double(1)
        cache.until(1, "cache.entries")
        assert unknown(cache) == {"uno.resource.utilization"}


def test_it_is_found_by_its_name_alone() -> None:
    hidden = make()
    with watching(LruCacheMonitor) as monitor:
        found = [resource.target for resource in monitor.discover_resources("cache")]
        assert SHOP_PRICES in found
        assert hidden not in found
