"""Do uno's hooks live beside those of OpenTelemetry, Sentry and Datadog, put on and taken off in any order?

Each order runs in a process of its own, since Sentry's and Datadog's patches of some classes stay. Datadog's package
brings a pytest plugin that changes every run, so it lives in an environment of its own: UNO_DDTRACE_PYTHON names its
Python (with sqlalchemy, httpx, redis and numpy, psutil); without it that test is skipped.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = '''
import sys
sys.path.insert(0, {source!r})
import httpx, redis, sqlalchemy, sqlalchemy.pool, sqlalchemy.engine.base, sqlalchemy.engine.default
import sqlalchemy.engine.create, sqlalchemy.pool.base
import httpx._client, httpcore._sync.connection_pool, httpcore._async.connection_pool
import redis.client, redis.asyncio.client, redis.connection
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

CLASSES = [
    sqlalchemy.pool.QueuePool, sqlalchemy.pool.NullPool, sqlalchemy.engine.base.Engine,
    sqlalchemy.engine.default.DefaultDialect, sqlalchemy.pool.base._ConnectionRecord,
    httpx.Client, httpx.AsyncClient, httpcore._sync.connection_pool.PoolRequest,
    redis.client.Redis, redis.client.Pipeline, redis.asyncio.client.Redis, redis.connection.ConnectionPool,
]

def state():
    return {{(cls.__module__, cls.__qualname__, name): value for cls in CLASSES for name, value in vars(cls).items()
            if callable(value)}}

def work():
    """What the application does; its results."""
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.QueuePool)
    with engine.connect() as connection:
        found = [connection.execute(sqlalchemy.text("SELECT 41 + 1")).scalar()]
    answer = httpx.MockTransport(lambda request: httpx.Response(200, text="fine"))
    with httpx.Client(transport=answer) as client:
        found.append(client.get("http://shop.test/").text)
    cache = redis.Redis(port=1, retry=None, socket_timeout=1)
    try:
        cache.get("a")
    except redis.exceptions.ConnectionError as error:
        found.append(type(error).__name__)
    return found, engine, client, cache

class Uno:
    def on(self):
        self.monitor = ResourceMonitor(ResourceManager(), interval=60)
        self.monitor.start()
        assert not self.monitor.hooks.off(), self.monitor.hooks.off()
    def check(self):
        found, engine, client, cache = work()  # one query, one command
        for id, target in (("db", engine), ("http", client), ("cache", cache)):
            self.monitor.manager.register(target, id=id)
        self.monitor.tick()
        count = {{id: self.monitor.stat_of(self.monitor.manager.get(id)).total.value for id in ("db", "cache")}}
        # Datadog takes off whatever lies on top of its own: then ours has gone with it, until it is put on again.
        torn = ("datadog", "off") in done
        assert count == {{"db": 1, "cache": 1}} or (torn and max(count.values()) <= 1), count
        for resource in list(self.monitor.manager):
            if resource.id in ("db", "http", "cache"):
                self.monitor.manager.unregister(resource)
        return found
    def off(self):
        self.monitor.stop()

class OpenTelemetry:
    def __init__(self):
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.instrumentation.redis import RedisInstrumentor
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
        self.all = [HTTPXClientInstrumentor(), RedisInstrumentor(), SQLAlchemyInstrumentor()]
    def on(self):
        for one in self.all:
            one.instrument()
    def off(self):
        for one in self.all:
            one.uninstrument()

class Sentry:
    def on(self):
        import sentry_sdk
        from sentry_sdk.integrations.httpx import HttpxIntegration
        from sentry_sdk.integrations.redis import RedisIntegration
        from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration
        sentry_sdk.init(
            dsn=None, default_integrations=False, auto_enabling_integrations=False, traces_sample_rate=1.0,
            integrations=[HttpxIntegration(), RedisIntegration(), SqlalchemyIntegration()],
        )
    def off(self):  # what it has patched stays
        pass

class Datadog:
    def on(self):
        import os
        os.environ["DD_TRACE_ENABLED"] = os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
        import ddtrace
        ddtrace.patch(sqlalchemy=True, httpx=True, redis=True)
    def off(self):
        from ddtrace.contrib.internal.httpx.patch import unpatch as httpx_off
        from ddtrace.contrib.internal.redis.patch import unpatch as redis_off
        from ddtrace.contrib.internal.sqlalchemy.patch import unpatch as sqlalchemy_off
        for off in (httpx_off, redis_off, sqlalchemy_off):
            off()

parties = {{"uno": Uno(), "otel": None, "sentry": Sentry(), "datadog": Datadog()}}
steps = {steps!r}
if any(name == "otel" for name, _ in steps):
    parties["otel"] = OpenTelemetry()
before, plain, on, done = state(), work()[0], set(), []
failed = failures.cell.value
for name, what in steps:
    getattr(parties[name], what)()
    done.append((name, what))
    on = on | {{name}} if what == "on" else on - {{name}}
    assert work()[0] == plain, (name, what)
    if "uno" in on:
        assert parties["uno"].check() == plain, (name, what)
assert failures.cell.value == failed, "a hook failed"
changed = [key for key, value in state().items() if before.get(key) is not value]
top = [key for key, value in state().items() if hasattr(value, "__uno_hook__") and before.get(key) is not value]
if {restored!r}:
    assert not changed, changed
print("fine", len(changed), len(top))
'''

#: Each put on and taken off once, in every order that makes sense.
ORDERS = [
    order
    for order in itertools.permutations([("uno", "on"), ("uno", "off"), ("it", "on"), ("it", "off")])
    if order.index(("uno", "on")) < order.index(("uno", "off"))
    and order.index(("it", "on")) < order.index(("it", "off"))
]


def names(order: tuple[tuple[str, str], ...]) -> str:
    return " ".join(f"{who}-{what}" for who, what in order)


def run(
    other: str, order: tuple[tuple[str, str], ...], python: str = sys.executable, *, nested: bool = False
) -> None:
    steps = [(other if who == "it" else who, what) for who, what in order]
    program = PROGRAM.format(source=str(ROOT / "src"), steps=steps, restored=nested)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("fine")


def is_nested(order: tuple[tuple[str, str], ...]) -> bool:
    """Whether the classes are as they were at the end: who came last went first, or nobody else was there."""
    who = [name for name, _ in order]
    return who in (["uno", "uno", "it", "it"], ["it", "it", "uno", "uno"]) or who[0] == who[3]


@pytest.mark.parametrize("order", ORDERS, ids=names)
def test_opentelemetry(order: tuple[tuple[str, str], ...]) -> None:
    for name in ("httpx", "redis", "sqlalchemy"):
        pytest.importorskip(f"opentelemetry.instrumentation.{name}")
    run("otel", order, nested=is_nested(order))


@pytest.mark.parametrize("first", ["uno", "it"])
def test_sentry(first: str) -> None:
    pytest.importorskip("sentry_sdk")
    on, theirs, off = ("uno", "on"), ("it", "on"), ("uno", "off")
    once = (on, theirs, off) if first == "uno" else (theirs, on, off)
    run("sentry", (*once, on, off))  # the second time, ours may lie beneath theirs: nothing is counted twice


@pytest.mark.parametrize("order", ORDERS, ids=names)
def test_datadog(order: tuple[tuple[str, str], ...]) -> None:
    python = os.environ.get("UNO_DDTRACE_PYTHON", "")
    if not python and importlib.util.find_spec("ddtrace") is None:
        pytest.skip("ddtrace is not installed: UNO_DDTRACE_PYTHON names a Python that has it")
    run("datadog", (*order, ("uno", "on"), ("uno", "off")), python or sys.executable)
