"""Does the advice on sizes follow from what was measured, and is nothing said without evidence?"""

from __future__ import annotations

from typing import Any

import pytest

from uno.core.monitoring.report.model import Row
from uno.core.monitoring.report.sizing import Pool, advice, against_servers, fitting


def row(metric: str, **given: Any) -> Row:
    empty: dict[str, Any] = dict.fromkeys(Row._fields)
    known = {"resource": "main-db", "metric": metric, "labels": {}, "exact": True, "count": 100}
    return Row(**{**empty, **known, **given})


def pool(size: float, uses: int = 10_000, mean: float = 0.1, ticks: int = 100, **use: Any) -> list[Row]:
    return [
        row("db.client.connection.use_time", count=uses, mean=mean, **use),
        row("db.client.connection.max", count=ticks, min=size, max=size, last=size),
        row("db.client.connection.wait_time", count=uses, p95=0.25),
    ]


@pytest.mark.parametrize(
    ("uses", "mean", "load", "size"), [(1000, 1.0, 10, 17), (100, 0.01, 0.01, 1), (10_000, 1.0, 100, 120)]
)
def test_littles_law(uses: int, mean: float, load: float, size: int) -> None:
    found = fitting(uses, mean, 100.0)
    assert found.load == pytest.approx(load)
    assert found.size == size


@pytest.mark.parametrize("size", [5, 60])
def test_too_small_and_too_large_with_the_evidence(size: int) -> None:
    (words,) = advice(pool(size), interval=1.0)
    assert words.startswith(
        f"main-db: 17 connections would fit, it may have {size}: 100 uses a second of 0.1 s each"
    )
    assert "10,000 uses in 100 s, 95 % waited less than 0.25 s" in words
    assert "The server's own limit is unknown" in words


def test_nothing_is_said_without_enough_evidence() -> None:
    assert advice(pool(17), 1.0) == advice(pool(16), 1.0) == [], "it fits"
    assert advice(pool(5, uses=199), 1.0) == []
    assert advice(pool(5, ticks=59), 1.0) == []
    assert advice(pool(5, exact=False), 1.0) == []
    assert advice(pool(5)[:1], 1.0) == []
    changed = pool(5)
    changed[1] = changed[1]._replace(min=3)
    assert advice(changed, 1.0) == []


SERVER = Pool(15, (5, 10), "10.0.0.1:5432", "max_connections", 100, 3, 34)


def test_the_load_of_all_workers_is_shared_among_them() -> None:
    (words,) = advice(pool(4 * 5, uses=40_000), 1.0, {"main-db": Pool(5)}, workers=4)
    assert words.startswith(  # 40 busy in all, 10 in each: 10 + 2 * sqrt(10)
        "main-db: 17 connections in each of 4 workers would fit, each may have 5: 400 uses a second of 0.1 s each "
        "keep 10 busy on average in each of 4 workers (40,000 uses in 100 s"
    )


def test_a_pool_that_is_not_the_same_in_all_workers_is_not_judged() -> None:
    assert advice(pool(15), 1.0, {"main-db": Pool(5)}, workers=4) == [], "three of the four have it"
    assert advice(pool(5 * 4), 1.0, {"main-db": Pool(10)}, workers=4) == []


def test_no_size_is_advised_that_the_server_does_not_take() -> None:
    busy = pool(4 * 5, uses=40_000)  # 40 busy
    (words,) = advice(busy, 1.0, {"main-db": SERVER._replace(limit=5)}, workers=4)
    assert "main-db: 17 connections in each of 4 workers would fit, each may have 5: " in words
    assert "4 x 17 = 68" not in words, "there is room for 97"
    (words,) = advice(busy, 1.0, {"main-db": SERVER._replace(limit=5, taken=50)}, workers=4)
    assert words.endswith(
        "But 4 x 17 = 68 is more than the 47 that the server has for applications: hold connections for less time, "
        "or raise max_connections."
    )


def test_all_workers_against_what_the_server_takes() -> None:
    assert against_servers({"main-db": SERVER}, workers=4) == {
        "10.0.0.1:5432": "main-db: 4 workers x (5 + 10) = 60 connections may be opened, the server 10.0.0.1:5432 takes "
        "100, 97 for applications; 34 are open now."
    }
    (words,) = against_servers({"main-db": SERVER}, workers=7).values()
    assert words == (
        "main-db: WARNING: 7 workers x (5 + 10) = 105 connections may be opened, 8 more than there is room for: the "
        "server 10.0.0.1:5432 takes 100, 97 for applications; 34 are open now. What is beyond is refused: make the "
        "pools smaller, or raise max_connections."
    )
    (words,) = against_servers({"main-db": SERVER}, workers=1).values()
    assert words.startswith("main-db: (5 + 10) = 15 connections may be opened by this process, the server")
    cache = Pool(40, (), "10.0.0.2:6379", "maxclients", 10_000, None, 1)
    assert against_servers({"cache": cache}, workers=1) == {
        "10.0.0.2:6379": "cache: 40 connections may be opened by this process, the server 10.0.0.2:6379 takes 10000; "
        "1 is open now."
    }


def test_all_pools_of_one_server_count() -> None:
    reports = SERVER._replace(limit=20, parts=())
    told = against_servers({"main-db": SERVER, "reports": reports, "cache": Pool(10)}, workers=4)
    (words,) = told.values()
    assert words.startswith(
        "main-db, reports: WARNING: 4 workers x (5 + 10) + 4 workers x 20 = 140 connections may be opened, 43 more"
    )


@pytest.mark.parametrize("unknown", [{"taken": None}, {"limit": None}, {"server": ""}])
def test_nothing_is_said_of_what_is_unknown(unknown: dict[str, Any]) -> None:
    assert against_servers({"main-db": SERVER._replace(**unknown)}, workers=4) == {}
