"""Is what all workers may open together set against what the server takes: in the report, its JSON and on the page?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_workers import Service, serve
from tests.servers import HOST, PostgreSQL

__all__ = ["serve"]

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(sys.platform == "win32", reason="record locks are POSIX"),
    pytest.mark.timeout(300),
]

APP = """
import os, json
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resources import ResourceMonitor

app = FastAPI()
monitor = ResourceMonitor(interval=0.2)
engine = create_engine(os.environ["DATABASE"], pool_size=5, max_overflow=int(os.environ["OVERFLOW"]))
monitor.manager.register(engine, id="main-db")
setup_monitoring(app, monitor, allow_anonymous=True)

@app.get("/order")
def order():
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return os.getpid()

@app.get("/page")
def page():
    return {"pid": os.getpid(), "page": "", "workers": monitor.sharing.count}

@app.get("/report")
def report():
    made = monitor.generate_report()
    return {"notes": made.to_dict()["notes"], "text": str(made)}
"""
COMMAND = [
    "-m",
    "uvicorn",
    "db_app:app",
    "--port",
    "PORT",
    "--log-level",
    "warning",
    "--workers",
    "2",
    "--timeout-worker-healthcheck",
    "60",
]


def told(service: Service, path: str) -> Any:
    return json.loads(service.get(path))


@pytest.mark.parametrize("overflow", [10, 20])
def test_workers_and_a_server_that_takes_fifty(
    serve: Callable[..., Service],
    postgresql: PostgreSQL,
    tmp_path: Path,
    overflow: int,
) -> None:
    (tmp_path / "db_app.py").write_text(APP)
    url = postgresql.url.replace("postgresql://", "postgresql+psycopg://")
    service = serve(COMMAND, DATABASE=url, OVERFLOW=str(overflow))
    service.until(lambda: service.get("/order"), 120)
    service.until(lambda: service.workers() == 2, 120)
    notes: list[str] = []

    def asked() -> bool:
        service.get("/order")
        notes[:] = [note for note in told(service, "/report")["notes"] if "connections may be opened" in note]
        return bool(notes)

    service.until(asked, 60)
    server = f"the server {HOST}:{postgresql.port} takes 50, 47 for applications; "
    if overflow == 10:
        assert notes[0].startswith(
            f"Sizing: main-db: 2 workers x (5 + 10) = 30 connections may be opened, {server}"
        )
    else:
        assert notes[0].startswith(
            "Sizing: main-db: WARNING: 2 workers x (5 + 20) = 50 connections may be opened, 3 more than there is room "
            f"for: {server}"
        )
        assert "make the pools smaller, or raise max_connections." in notes[0]
    # Whichever worker answers, the printed report and the page say it too.
    assert notes[0].split("; ")[0] in told(service, "/report")["text"]
    page = told(service, "/monitoring/dashboard/api/resource?id=main-db")["note"]
    assert notes[0].split("; ")[0].replace("main-db: ", "", 1) in page
