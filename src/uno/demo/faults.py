"""What goes wrong in the shop? Routes with the bugs that everybody has written once; only incidents call them."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection, event, text

from uno.demo.shop import catalog_db, orders_db

router = APIRouter()
leaked: list[Connection] = []


@router.post("/refunds")
def refund() -> dict[str, int]:
    """A connection leak: what is taken from the pool is never given back."""
    connection = orders_db.connect()
    leaked.append(connection)
    return {"orders": connection.execute(text("SELECT count(*) FROM orders")).scalar_one()}


def give_back() -> None:
    """The end of the leak."""
    while leaked:
        leaked.pop().close()


@router.get("/reports/sales")
def report_sales() -> dict[str, Any]:
    """A slow query: the database works for more than a second."""
    with orders_db.connect() as connection:
        row = connection.execute(text("SELECT count(*) AS sold, crunch() FROM orders")).one()
        return {"sold": row.sold}


@event.listens_for(orders_db, "connect")
def _define_crunch(connection: Any, record: object) -> None:
    """SQLite has no pg_sleep(); a function of ours takes the time."""
    connection.create_function("crunch", 0, lambda: time.sleep(random.uniform(1.1, 1.4)))


@router.post("/checkouts")
async def check_out() -> dict[str, bool]:
    """A pool that runs dry: each customer holds a connection while the bank is asked."""
    async with catalog_db.connect() as connection:
        await connection.execute(text("SELECT sku FROM products"))
        await asyncio.sleep(random.uniform(1.0, 2.0))  # the bank thinks
        return {"paid": True}


@router.get("/thumbnails")
async def thumbnail() -> dict[str, bool]:
    """A blocked event loop: work that should be in a thread stops everything else."""
    time.sleep(random.uniform(0.5, 1.2))  # noqa: ASYNC251 - this is the bug
    return {"drawn": True}
