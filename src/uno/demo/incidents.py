"""Which incidents can be started, and how? Each is a number of customers that do what the shop cannot stand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from uno.core.monitoring.resources import ResourceMonitor
from uno.demo import faults
from uno.demo.background import LoopThread
from uno.demo.traffic import Client, customers
from uno.demo.upstream import PriceService

SECONDS = 60.0
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "cache-control": "no-cache",
}


class Incident(NamedTuple):
    """``callers`` send the request again and again, ``pause`` seconds apart."""

    name: str
    title: str
    story: str
    method: str
    path: str
    callers: int
    pause: float
    begin: Callable[[], object] = lambda: None
    end: Callable[[], object] = lambda: None


class _Run:
    """One course of an incident, until a monotonic time."""

    def __init__(self, incident: Incident, after: _Run | None) -> None:
        self.incident, self.after, self.until = incident, after, time.monotonic() + SECONDS
        self.over = asyncio.Event()

    @property
    def remaining(self) -> float:
        return max(0.0, self.until - time.monotonic())

    async def __call__(self, client: Client) -> None:
        if self.after is not None:
            await self.after.over.wait()  # its last requests
            self.after = None
        self.incident.begin()
        calls = [asyncio.create_task(self._call(client)) for _ in range(self.incident.callers)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        self.incident.end()
        await asyncio.wait(calls)
        self.incident.end()  # what the last requests did
        self.over.set()

    async def _call(self, client: Client) -> None:
        while self.remaining:
            await client.send(self.incident.method, self.incident.path)
            await asyncio.sleep(self.incident.pause)


class Incidents:
    """Starts and stops incidents, from any thread; each ends after a minute by itself."""

    def __init__(self, client: Client, upstream: PriceService) -> None:
        self._client = client
        self._thread = LoopThread("demo-traffic")
        self._runs: dict[str, _Run] = {}
        self.all = {incident.name: incident for incident in _incidents(upstream)}

    def open_shop(self) -> None:
        """Let the customers in."""
        asyncio.run_coroutine_threadsafe(customers(self._client), self._thread.loop)

    def start(self, name: str) -> None:
        """Start an incident; one that runs already goes on as it is."""
        if not self.remaining(name):
            run = self._runs[name] = _Run(self.all[name], self._runs.get(name))
            asyncio.run_coroutine_threadsafe(run(self._client), self._thread.loop)

    def stop(self, name: str) -> None:
        """End it; nothing when it does not run."""
        if name in self._runs:
            self._runs[name].until = 0.0

    def remaining(self, name: str) -> float:
        """For how many seconds it will go on; 0 when it does not run."""
        return self._runs[name].remaining if name in self._runs else 0.0

    def close(self) -> None:
        """End all of them and the customers."""
        self._thread.close()
        faults.give_back()


def _incidents(upstream: PriceService) -> list[Incident]:
    return [
        Incident(
            "leak",
            "Connection leak",
            "Refunds take a connection of the orders database and never give it back.",
            "POST",
            "/refunds",
            callers=2,
            pause=0.3,
            end=faults.give_back,
        ),
        Incident(
            "slow-queries",
            "Slow queries",
            "The sales report asks the orders database for something that takes more than a second.",
            "GET",
            "/reports/sales",
            callers=3,
            pause=0.1,
        ),
        Incident(
            "dry-pool",
            "A pool runs dry",
            "Twelve customers check out at once; each holds a connection of the catalogue while the bank thinks.",
            "POST",
            "/checkouts",
            callers=12,
            pause=0.05,
        ),
        Incident(
            "blocked-loop",
            "Blocked event loop",
            "Thumbnails are drawn in an async handler, without a thread: everything else waits.",
            "GET",
            "/thumbnails",
            callers=1,
            pause=0.3,
        ),
        Incident(
            "upstream",
            "Failing upstream",
            "The price service refuses connections, while customers keep asking for prices.",
            "GET",
            "/products/tea",
            callers=1,
            pause=0.3,
            begin=upstream.refuse,
            end=upstream.accept,
        ),
    ]


def make_router(incidents: Incidents, monitor: ResourceMonitor, dashboard: str) -> APIRouter:
    """The page at ``/`` and what it asks."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    @router.get("/demo/{file}")
    async def asset(file: str) -> FileResponse:
        if file not in ("page.css", "page.js"):
            raise HTTPException(404)
        return FileResponse(PAGE / file, headers=HEADERS)

    @router.get("/incidents")
    async def state() -> dict[str, Any]:
        """The incidents, and what uno says at the moment."""
        return {
            "dashboard": dashboard,
            "incidents": [
                {
                    "name": incident.name,
                    "title": incident.title,
                    "story": incident.story,
                    "remaining": round(incidents.remaining(incident.name), 1),
                }
                for incident in incidents.all.values()
            ],
            "alerts": [
                {"level": a.level.label, "resource": a.resource, "message": a.message, "cause": a.cause}
                for a in monitor.alerts.active()
                if a.state == "firing"
            ],
        }

    @router.post("/incidents/{name}")
    async def start(name: str) -> dict[str, Any]:
        if name not in incidents.all:
            raise HTTPException(404, "no such incident")
        incidents.start(name)
        return await state()

    @router.delete("/incidents/{name}")
    async def stop(name: str) -> dict[str, Any]:
        if name not in incidents.all:
            raise HTTPException(404, "no such incident")
        incidents.stop(name)
        return await state()

    return router
