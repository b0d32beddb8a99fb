"""What does the browser look at? A small application whose state a test changes from outside.

``python -m uvicorn tests.browser.shop:app`` with SCENE=shop, bare, many or hostile, and UNO_DASHBOARD_TOKEN.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from sqlalchemy import Connection, create_engine

from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resources import Gauge, ResourceMonitor, Threshold

HOSTILE = [
    '<img src=x onerror="window.hacked=1">',
    '"><script>window.hacked=2</script>',
    "</title></svg><svg onload=window.hacked=3>",
    "javascript:window.hacked=4",
    "\u202egnp.exe \u2066 \x1b]0;title\x07 \x00 {{7*7}} ${7*7}",
    "long" * 250,
    "a b " * 100,
]

app = FastAPI()
monitor = setup_monitoring(app, ResourceMonitor(interval=0.5, service="shop"))
held: list[Connection] = []


def shop() -> None:
    engine = create_engine(f"sqlite:///{tempfile.mkdtemp()}/shop.sqlite", pool_size=4, max_overflow=0)
    pool = ThreadPoolExecutor(2)
    monitor.manager.register(engine, id="shop-db", name="shop-db", labels={"team": "orders"})
    monitor.manager.register(pool, id="printers", name="printers", depends_on=["shop-db"])
    monitor.set_threshold(
        "shop-db", "connection_pool_usage", Threshold(0.6, 0.9, "The pool is nearly used up")
    )

    @app.post("/hold/{n}")
    def hold(n: int) -> int:
        held.extend(engine.connect() for _ in range(n))
        return len(held)

    @app.post("/release")
    def give_back() -> None:
        while held:
            held.pop().close()

    @app.post("/stop")
    def stop() -> None:
        monitor.stop()

    @app.post("/start")
    def start() -> None:
        monitor.start()


def many() -> None:
    for n in range(1_000):
        id = f"queue-{n:04}"
        monitor.manager.register(object(), id=id, type="task_queue")
        monitor.add_metric(id, Gauge("depth", "Jobs that wait")).set(n % 17)


def hostile() -> None:
    for n, text in enumerate(HOSTILE):
        id = f"hostile-{n}"
        labels = {"text": text[:100]}
        monitor.manager.register(
            ThreadPoolExecutor(1), id=id, name=text, labels=labels, depends_on=["hostile-0"]
        )
        level = monitor.add_metric(id, Gauge("level", text))
        level.set(9.0)
        monitor.set_threshold(id, "level", Threshold(critical=5, alert_message=text))


# A slow machine is no finding of these tests.
for rule in monitor.alerts.rules():
    if rule.resource_type in ("process", "event_loop", "file_handle", "host"):
        monitor.set_threshold(resource_type=rule.resource_type, metric_name=rule.metric, threshold=None)

{"shop": shop, "bare": lambda: None, "many": many, "hostile": hostile}[os.environ["SCENE"]]()
