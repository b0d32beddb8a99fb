"""Are niquests' sessions and urllib3-future's pools seen? Run by test_niquests.py, in an environment of its own."""

from __future__ import annotations

from typing import Any

import niquests
import urllib3

from tests.contract import kit
from tests.contract.kit import Watched
from tests.servers import free_port, wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

RATIO = "uno.http.client.error_ratio"
#: One connection carries many requests: how many are in use is not known.
UNKNOWN = {
    "uno.resource.utilization",
    "http.client.open_connections",
    "http.client.connection.max",
    "http.client.pending_requests",
}


def test_requests_of_sessions_and_managers(upstream: str) -> None:
    assert hasattr(urllib3.util, "traffic_police"), "urllib3-future stands in urllib3's place"
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(
            lambda: {"Session.send", "PoolManager.urlopen"} <= set(kit.hooked("niquests", "urllib3")),
            5,
            "hooks",
        )
        with niquests.Session() as session:
            api = Watched(monitor, session)
            for path in ("/200", "/404", "/503"):
                session.get(upstream + path)
            api.until(3, "request_duration", "count")
            assert api.read("requests", "total", outcome="4xx") == 1
            assert api.read("errors", "total") == 1
            assert kit.unknown(api) == UNKNOWN
            refused: Any = None
            try:
                session.get(f"http://127.0.0.1:{free_port()}/")
            except niquests.ConnectionError as error:
                refused = error
            assert refused is not None
            api.until(1, "requests", "total", outcome="ConnectionError")
        manager = urllib3.PoolManager()
        pool = Watched(monitor, manager, "manager")
        assert manager.request("GET", f"{upstream}/200").status == 200
        pool.until(1, "requests", "total", outcome="2xx")
        manager.clear()
    assert kit.hooked("niquests", "urllib3") == []
