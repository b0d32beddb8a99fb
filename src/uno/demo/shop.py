"""What does an application with uno look like? A small shop on FastAPI that really uses its resources.

Three lines here are uno's: an import, ``setup_monitoring(app)``, which finds the pools, clients and queues below,
and the page for Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import os
import textwrap
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter

FOLDER = Path(os.environ.get("SHOP_FOLDER", "."))
REDIS_URL = os.environ.get("REDIS_URL")
BROKER_URL = os.environ.get("BROKER_URL")
RECEIPTS_KEPT = 100

POOL: dict[str, Any] = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 1.0}
orders_db = create_engine(f"sqlite:///{FOLDER / 'orders.db'}", **POOL)
catalog_db = create_async_engine(f"sqlite+aiosqlite:///{FOLDER / 'catalog.db'}", **POOL)
price_service = httpx.AsyncClient(base_url=os.environ.get("PRICES_URL", "http://127.0.0.1:8010"), timeout=2)
cache = Redis.from_url(REDIS_URL) if REDIS_URL else None
receipt_queue: asyncio.Queue[int] = asyncio.Queue(maxsize=100)
printers = ThreadPoolExecutor(max_workers=3, thread_name_prefix="printer")

PRODUCTS = {
    "tea": "Darjeeling, first flush",
    "cup": "Cup, stoneware",
    "pot": "Teapot, cast iron",
    "tin": "Tin for 250 g",
    "spoon": "Measuring spoon",
    "book": "The Book of Tea",
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the tables, start the workers; at the end, close what is open."""
    await create_tables()
    workers = [asyncio.create_task(print_receipts()) for _ in range(2)]
    if BROKER_URL:
        workers.append(asyncio.create_task(ship_orders(app, BROKER_URL)))
    yield
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    printers.shutdown(wait=False, cancel_futures=True)
    await price_service.aclose()
    if cache is not None:
        await cache.aclose()
    await catalog_db.dispose()
    orders_db.dispose()


app = FastAPI(title="Tea shop", lifespan=lifespan)
monitor = setup_monitoring(app)
app.include_router(setup_prometheus_exporter(monitor).router, prefix="/metrics")


@app.get("/products")
async def list_products() -> list[dict[str, Any]]:
    """The catalogue: from the cache, else from its database."""
    if cache is not None:
        try:
            cached = await cache.get("products")
            if cached is not None:
                return json.loads(cached)  # type: ignore[no-any-return]
        except RedisError:
            pass  # slower without it
    async with catalog_db.connect() as connection:
        rows = await connection.execute(text("SELECT sku, name FROM products ORDER BY name"))
        products = [dict(row._mapping) for row in rows]
    if cache is not None:
        with suppress(RedisError):
            await cache.set("products", json.dumps(products), ex=1)
    return products


@app.get("/products/{sku}")
async def show_product(sku: str) -> dict[str, Any]:
    """One product, with its price of this moment."""
    async with catalog_db.connect() as connection:
        query = text("SELECT sku, name FROM products WHERE sku = :sku")
        row = (await connection.execute(query, {"sku": sku})).first()
    if row is None:
        raise HTTPException(404, "no such product")
    answer = await price_service.get(f"/prices/{sku}")
    answer.raise_for_status()
    return {**row._mapping, **answer.json()}


@app.post("/orders", status_code=201)
async def place_order(sku: str) -> dict[str, int]:
    """Store an order; its receipt is printed and its parcel is sent later."""
    if sku not in PRODUCTS:
        raise HTTPException(404, "no such product")
    order = await run_in_threadpool(store_order, sku)
    try:
        receipt_queue.put_nowait(order)
    except asyncio.QueueFull:
        raise HTTPException(503, "too many orders") from None
    if parcels := getattr(app.state, "parcels", None):
        message = aio_pika.Message(json.dumps({"order": order, "sku": sku}).encode())
        await parcels.publish(message, routing_key="parcels")
    return {"order": order}


@app.get("/orders/{order}/receipt")
async def show_receipt(order: int) -> FileResponse:
    """The receipt, once it is printed."""
    path = receipt_path(order)
    if not path.exists():
        raise HTTPException(404, "no receipt yet")
    return FileResponse(path, media_type="text/plain")


@app.exception_handler(PoolTimeout)
async def too_busy(request: Request, error: Exception) -> JSONResponse:
    """No database connection became free in time."""
    return JSONResponse({"detail": "too busy"}, 503)


@app.exception_handler(httpx.HTTPError)
async def no_price(request: Request, error: Exception) -> JSONResponse:
    """The price service did not answer."""
    return JSONResponse({"detail": "no price at the moment"}, 502)


async def create_tables() -> None:
    """The two databases as they are at the start."""
    async with catalog_db.begin() as connection:
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS products (sku TEXT PRIMARY KEY, name TEXT)")
        )
        rows = [{"sku": sku, "name": name} for sku, name in PRODUCTS.items()]
        await connection.execute(text("INSERT OR IGNORE INTO products VALUES (:sku, :name)"), rows)
    with orders_db.begin() as connection:
        connection.execute(text("PRAGMA journal_mode = wal"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, sku TEXT)"))


def store_order(sku: str) -> int:
    """Insert an order and return its number; old ones go."""
    with orders_db.begin() as connection:
        inserted = connection.execute(text("INSERT INTO orders (sku) VALUES (:sku)"), {"sku": sku})
        order = int(inserted.lastrowid)
        connection.execute(text("DELETE FROM orders WHERE id < :oldest"), {"oldest": order - 1_000})
    return order


async def print_receipts() -> None:
    """A worker: takes orders from the queue and has each printed by a thread."""
    loop = asyncio.get_running_loop()
    while True:
        order = await receipt_queue.get()
        try:
            await loop.run_in_executor(printers, print_receipt, order)
        finally:
            receipt_queue.task_done()


def print_receipt(order: int) -> None:
    """Write the receipt of an order to its file."""
    with orders_db.connect() as connection:
        sku = connection.execute(text("SELECT sku FROM orders WHERE id = :id"), {"id": order}).scalar() or ""
    lines = textwrap.wrap(f"Order {order}: {PRODUCTS.get(sku, 'unknown')}. Thank you for your visit.", 32)
    path = receipt_path(order)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def receipt_path(order: int) -> Path:
    """Where the receipt is; only the latest are kept."""
    return FOLDER / "receipts" / f"{order % RECEIPTS_KEPT}.txt"


async def ship_orders(app: FastAPI, url: str) -> None:
    """A worker: once the broker is there, offer the exchange to `place_order` and send the parcels."""
    await until_listening(url)
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=10)
        parcels = await channel.declare_queue("parcels")
        app.state.parcels = channel.default_exchange
        try:
            async with parcels.iterator() as messages:
                async for message in messages:
                    async with message.process():
                        await asyncio.sleep(0.02)  # the parcel is packed
        finally:
            app.state.parcels = None


async def until_listening(url: str) -> None:
    """RabbitMQ takes some seconds to start; it listens when it is ready."""
    address = urlsplit(url)
    while True:
        try:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            await asyncio.sleep(0.5)
        else:
            writer.close()
            return
