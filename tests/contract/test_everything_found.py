"""Is every resource of an application found that holds some of everything in one module, and is none kept alive?

Nothing here needs a server: what leads to one is made and not used. Missing are pika and arq, whose clients connect
when they are made: see their own tests. It takes some seconds since half a hundred clients are closed, and those that
no program would drop at once are waited for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import inspect
import multiprocessing.pool
import queue
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Set
from itertools import compress
from typing import Any, NamedTuple

import aio_pika
import aiohttp
import aiokafka
import aiomqtt
import aiomysql
import aiosqlite
import anyio
import asyncmy
import asyncpg
import celery
import confluent_kafka
import dramatiq
import dramatiq.brokers.stub
import grpc
import grpc.aio
import httpx
import httpx2
import huey
import nats.aio.client
import paho.mqtt.client
import paho.mqtt.enums
import procrastinate
import procrastinate.testing
import psycopg2.pool
import psycopg_pool
import pymongo
import pytest
import redis
import redis.asyncio
import redis.sentinel
import requests
import rq
import sqlalchemy
import sqlalchemy.ext.asyncio
import sqlalchemy.pool
import taskiq
import urllib3
import valkey
import valkey.asyncio
import yarl
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tests.contract.kit import soon, watching

with warnings.catch_warnings(
    action="ignore", category=DeprecationWarning
):  # it reads its files in an old way
    import kafka

NOWHERE = "127.0.0.1:1"
MOCK: dict[str, Any] = {"api_version": (2, 0)}
QUIET = {"bootstrap.servers": NOWHERE, "log_level": 0}
#: What has no number before it is used.
UNREAD = {"asyncpg_pool"}
#: That these went is looked up once in a while: see test_confluent_kafka.
LATER = {"kafka_producer"}


class Kind(NamedTuple):
    """One resource of the application."""

    type: str
    make: Callable[[], Any]
    close: Callable[[Any], Any] | None = None


def a_call(name: str) -> Callable[[Any], Any]:
    return lambda obj: getattr(obj, name)()


async def a_sqlite_connection() -> Any:
    return await aiosqlite.connect(":memory:")


EVERYTHING = {
    # databases
    "engine": Kind("database", lambda: sqlalchemy.create_engine("sqlite:///:memory:")),
    "null_pool": Kind(
        "database", lambda: sqlalchemy.create_engine("sqlite:///", poolclass=sqlalchemy.pool.NullPool)
    ),
    "async_engine": Kind(
        "database", lambda: sqlalchemy.ext.asyncio.create_async_engine("sqlite+aiosqlite:///")
    ),
    "asyncpg_pool": Kind("database", lambda: asyncpg.create_pool(f"postgresql://u:p@{NOWHERE}/d")),
    "psycopg_pool": Kind(
        "database", lambda: psycopg_pool.ConnectionPool(f"postgresql://{NOWHERE}/d", open=False)
    ),
    "psycopg_async_pool": Kind(
        "database", lambda: psycopg_pool.AsyncConnectionPool(f"postgresql://{NOWHERE}/d", open=False)
    ),
    "psycopg2_pool": Kind("database", lambda: psycopg2.pool.ThreadedConnectionPool(0, 4, "host=127.0.0.1")),
    "aiomysql_pool": Kind(
        "database", lambda: aiomysql.Pool(0, 4, False, -1, asyncio.get_running_loop(), host="127.0.0.1")
    ),
    "asyncmy_pool": Kind("database", lambda: asyncmy.pool.Pool(0, 4, host="127.0.0.1")),
    "aiosqlite_connection": Kind("database", a_sqlite_connection, a_call("close")),
    "mongo": Kind(
        "database", lambda: pymongo.MongoClient(f"mongodb://{NOWHERE}", connect=False), a_call("close")
    ),
    "async_mongo": Kind(
        "database", lambda: pymongo.AsyncMongoClient(f"mongodb://{NOWHERE}", connect=False), a_call("close")
    ),
    # Redis and its like
    "redis_client": Kind("redis", lambda: redis.Redis(port=1)),
    "redis_blocking": Kind("redis", lambda: redis.BlockingConnectionPool(port=1)),
    "redis_async": Kind("redis", lambda: redis.asyncio.Redis(port=1)),
    "redis_sentinel": Kind("redis", lambda: redis.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("main")),
    "valkey_client": Kind("redis", lambda: valkey.Valkey(port=1)),
    "valkey_async": Kind("redis", lambda: valkey.asyncio.Valkey(port=1)),
    # HTTP and gRPC clients
    "httpx_client": Kind("http_client", httpx.Client, a_call("close")),
    "httpx_async": Kind("http_client", httpx.AsyncClient, a_call("aclose")),
    "httpx2_client": Kind("http_client", httpx2.Client, a_call("close")),
    "aiohttp_session": Kind("http_client", aiohttp.ClientSession, a_call("close")),
    "urllib3_pools": Kind("http_client", urllib3.PoolManager),
    "requests_session": Kind("http_client", requests.Session, a_call("close")),
    "grpc_channel": Kind("grpc_channel", lambda: grpc.insecure_channel(NOWHERE), a_call("close")),
    "grpc_async": Kind("grpc_channel", lambda: grpc.aio.insecure_channel(NOWHERE), a_call("close")),
    # threads, processes, queues, locks
    "threads": Kind("thread_pool", concurrent.futures.ThreadPoolExecutor, a_call("shutdown")),
    "processes": Kind("process_pool", concurrent.futures.ProcessPoolExecutor, a_call("shutdown")),
    "thread_backed_pool": Kind(
        "process_pool", lambda: multiprocessing.pool.ThreadPool(1), a_call("terminate")
    ),
    "limiter": Kind("limiter", lambda: anyio.CapacityLimiter(4)),
    "queue": Kind("task_queue", queue.Queue),
    "simple_queue": Kind("task_queue", queue.SimpleQueue),
    "async_queue": Kind("task_queue", asyncio.Queue),
    "semaphore": Kind("lock", lambda: asyncio.Semaphore(3)),
    "async_lock": Kind("lock", asyncio.Lock),
    "thread_semaphore": Kind("lock", lambda: threading.Semaphore(3)),
    "thread_lock": Kind("lock", threading.Lock),
    # task queues
    "celery_app": Kind("task_queue", lambda: celery.Celery("shop", broker="memory://", set_as_current=False)),
    "rq_queue": Kind("task_queue", lambda: rq.Queue("shop", connection=redis.Redis(port=1))),
    "dramatiq_broker": Kind("task_queue", lambda: dramatiq.brokers.stub.StubBroker(middleware=[])),
    "taskiq_broker": Kind("task_queue", taskiq.InMemoryBroker),
    "huey_tasks": Kind("task_queue", lambda: huey.MemoryHuey("shop")),
    "scheduler": Kind("task_queue", AsyncIOScheduler),
    "procrastinate_app": Kind(
        "task_queue", lambda: procrastinate.App(connector=procrastinate.testing.InMemoryConnector())
    ),
    # brokers
    "rabbit": Kind("message_broker", lambda: aio_pika.Connection(yarl.URL(f"amqp://u:p@{NOWHERE}/"))),
    "nats_client": Kind("message_broker", lambda: nats.aio.client.Client()),
    "mqtt_client": Kind(
        "message_broker",
        lambda: paho.mqtt.client.Client(paho.mqtt.enums.CallbackAPIVersion.VERSION2),
    ),
    "mqtt_async": Kind("message_broker", lambda: aiomqtt.Client("127.0.0.1")),
    "kafka_consumer": Kind(
        "message_broker", lambda: confluent_kafka.Consumer({**QUIET, "group.id": "g"}), a_call("close")
    ),
    "kafka_producer": Kind("message_broker", lambda: confluent_kafka.Producer(dict(QUIET))),
    "aiokafka_consumer": Kind(
        "message_broker", lambda: aiokafka.AIOKafkaConsumer(bootstrap_servers=NOWHERE), a_call("stop")
    ),
    "aiokafka_producer": Kind(
        "message_broker", lambda: aiokafka.AIOKafkaProducer(bootstrap_servers=NOWHERE), a_call("stop")
    ),
    "kafka_python_consumer": Kind("message_broker", lambda: kafka.KafkaConsumer(**MOCK), a_call("close")),
    "kafka_python_producer": Kind("message_broker", lambda: kafka.KafkaProducer(**MOCK), a_call("close")),
}


@pytest.fixture(autouse=True, scope="module")
def broker() -> Iterator[None]:
    """kafka-python connects as soon as a client is made: to librdkafka's mock cluster."""
    cluster = confluent_kafka.Producer(
        {"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0}
    )
    (there,) = cluster.list_topics(timeout=10).brokers.values()
    MOCK["bootstrap_servers"] = f"{there.host}:{there.port}"
    yield
    del cluster


@pytest.fixture
def shop() -> Iterator[types.ModuleType]:
    """A module of the application."""
    module = types.ModuleType("shop_of_everything")
    module.__file__ = __file__
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


async def fill(shop: types.ModuleType) -> None:
    for name, kind in EVERYTHING.items():
        made = kind.make()
        vars(shop)[name] = await made if inspect.iscoroutine(made) else made


async def empty(shop: types.ModuleType, expected: Set[str] = frozenset(), seconds: float = 3) -> set[str]:
    """Drop all; returns the names of those that go, once these are the ``expected`` ones, or after some seconds."""
    weak: dict[str, weakref.ref[Any]] = {}
    others: dict[str, tuple[int, type]] = {}  # their classes allow no weak reference
    for name, kind in EVERYTHING.items():
        obj = vars(shop).pop(name)
        try:
            weak[name] = weakref.ref(obj)
        except TypeError:
            others[name] = id(obj), type(obj)
        closing = kind.close(obj) if kind.close is not None else None
        if inspect.isawaitable(closing):
            await closing
        del obj, closing
    untracked = {name for name in others if others[name][1] in (queue.SimpleQueue, type(threading.Lock()))}

    def left() -> set[str]:
        gc.collect()
        classes = {cls for _, cls in others.values()}
        objects = gc.get_objects()
        living = {
            (id(obj), type(obj)) for obj in compress(objects, map(classes.__contains__, map(type, objects)))
        }
        return {name for name in weak if weak[name]() is not None} | {
            n for n in others if others[n] in living
        }

    with contextlib.suppress(AssertionError):
        await soon(lambda: not left() & (expected or EVERYTHING.keys()), "all go", seconds)
    return EVERYTHING.keys() - left() - untracked


async def test_all_are_found_under_their_names_and_go(shop: types.ModuleType) -> None:
    await fill(shop)
    goes_without_uno = await empty(shop)
    assert len(goes_without_uno) > 40

    await fill(shop)
    with watching() as monitor:
        monitor.discover_all_resources()
        found = {r.id.removeprefix("shop_of_everything."): r.type for r in monitor.manager}
        expected = {name: kind.type for name, kind in EVERYTHING.items()}
        assert {name: found.get(name) for name in expected} == expected
        ids = [f"shop_of_everything.{name}" for name in EVERYTHING if name not in UNREAD]
        await soon(
            lambda: all(monitor.series(id) for id in ids), f"{[i for i in ids if not monitor.series(i)]}", 20
        )
        kept = goes_without_uno - await empty(shop, goes_without_uno, 30)  # a ping may hold one
        assert not kept, "what goes without uno goes with it"
        gone = {f"shop_of_everything.{name}" for name in goes_without_uno}
        gone -= {
            "shop_of_everything.kafka_producer"
        }  # that it went is looked up once in a while: test_confluent_kafka
        await soon(lambda: not gone & {r.id for r in monitor.manager}, "their resources leave")


async def test_later_ones_are_found_too(shop: types.ModuleType) -> None:
    with watching() as monitor:
        monitor.discover_all_resources()
        await fill(shop)
        ids = {f"shop_of_everything.{name}" for name in EVERYTHING}
        await soon(
            lambda: ids <= {r.id for r in monitor.manager}, f"{ids - {r.id for r in monitor.manager}}", 30
        )
        await empty(shop)
