"""Does the advice on sizes follow from what was measured, and is nothing said without evidence?"""

from __future__ import annotations

from typing import Any

import pytest

from uno.core.monitoring.report.model import Row
from uno.core.monitoring.report.sizing import advice, fitting


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
