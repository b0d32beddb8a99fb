"""Does every sample of the specification run as it is written, in its order?

The code between the ``# --`` lines is the specification's, word for word; only the paths that it names and the
assertions around it are ours. The samples share names, as they do on the page.
"""

from __future__ import annotations

import asyncio
import csv
import datetime
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.pool import QueuePool


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names of the page, and a real database behind main-db."""
    folder = tmp_path_factory.mktemp("shop")
    engine = sqlalchemy.create_engine(
        f"sqlite:///{folder}/shop.sqlite", poolclass=QueuePool, pool_size=4, max_overflow=0
    )
    names: dict[str, Any] = {"engine": engine, "folder": folder}
    yield names
    monitor = names.get("resource_monitor")
    if monitor is not None:
        monitor.stop()
    engine.dispose()


def use(engine: sqlalchemy.Engine, times: int = 3) -> None:
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("select 1"))


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def test_basic_usage(page: dict[str, Any]) -> None:
    # --
    from uno.core.monitoring.resources import ResourceMonitor
    from uno.core.resources import ResourceManager

    # Create a resource monitor
    resource_manager = ResourceManager()
    resource_monitor = ResourceMonitor(resource_manager)

    # Start monitoring
    resource_monitor.start()

    # Later in your application shutdown
    resource_monitor.stop()
    # --
    assert not resource_monitor.running
    page["resource_manager"] = resource_manager
    page["resource_monitor"] = ResourceMonitor(resource_manager, interval=0.1)
    page["resource_monitor"].start()
    page["main_db"] = resource_manager.register(page["engine"], id="main-db")
    assert page["main_db"].type == "database"


def test_metrics_collection(page: dict[str, Any]) -> None:
    from uno.core.monitoring.resources import Gauge

    resource_monitor = page["resource_monitor"]
    # --
    # Database connection metrics example
    resource_monitor.add_metric(
        resource_id="main-db",
        metric=Gauge(
            name="connection_pool_usage",
            description="Current usage of the database connection pool",
            labels=["database_name", "pool_id"],
        ),
    )
    # --
    held = [page["engine"].connect() for _ in range(3)]
    until(lambda: resource_monitor.read("main-db", "connection_pool_usage") == 0.75)
    (reading,) = [r for r in resource_monitor.series("main-db") if r.metric == "connection_pool_usage"]
    assert reading.stats == {"value": 0.75}
    assert reading.labels["pool_id"] == "main-db"
    assert "shop" in reading.labels["database_name"]
    for connection in held:
        connection.close()
    until(lambda: resource_monitor.read("main-db", "connection_pool_usage") == 0.0)


def test_resource_health_integration(page: dict[str, Any]) -> None:
    resource_manager, resource_monitor = page["resource_manager"], page["resource_monitor"]
    # --
    from uno.core.monitoring.health import HealthRegistry
    from uno.core.monitoring.resources import ResourceHealthAdapter

    health_registry = HealthRegistry()
    health_adapter = ResourceHealthAdapter(resource_manager, resource_monitor)
    health_registry.register_adapter(health_adapter)
    # --
    until(lambda: health_registry.report().http_status == 200)
    until(lambda: resource_monitor.health_of("main-db").status.value == "up")
    assert "main-db" in json.dumps(health_registry.report().to_dict())


def test_automatic_resource_discovery(page: dict[str, Any]) -> None:
    resource_monitor = page["resource_monitor"]
    other = sqlalchemy.create_engine("sqlite://")
    # --
    # Auto-detect and monitor all database connections
    resource_monitor.discover_resources(resource_type="database")

    # Auto-detect and monitor all resources
    resource_monitor.discover_all_resources()
    # --
    found = page["resource_manager"].of(other)
    assert found is not None
    assert found.type == "database"
    assert page["resource_manager"].of(page["engine"]).id == "main-db"
    other.dispose()


def test_resource_thresholds_and_alerts(page: dict[str, Any]) -> None:
    resource_monitor = page["resource_monitor"]
    # --
    from uno.core.monitoring.resources import AlertLevel, Threshold

    # Set a threshold for connection pool usage
    resource_monitor.set_threshold(
        resource_id="main-db",
        metric_name="connection_pool_usage",
        threshold=Threshold(
            warning=0.7,  # 70% usage triggers warning
            critical=0.9,  # 90% usage triggers critical alert
            alert_message="Database connection pool utilization high",
        ),
    )
    # --
    seen: list[Any] = []
    resource_monitor.on_alert(seen.append)
    held = [page["engine"].connect() for _ in range(3)]
    until(lambda: resource_monitor.level_of("main-db") is AlertLevel.WARNING)
    held.append(page["engine"].connect())
    until(lambda: resource_monitor.level_of("main-db") is AlertLevel.CRITICAL)
    (alert,) = [a for a in resource_monitor.alerts.active() if a.resource == "main-db"]
    assert alert.message == "Database connection pool utilization high"
    assert "test_specification.py" in alert.cause
    for connection in held:
        connection.close()
    until(lambda: resource_monitor.level_of("main-db") is AlertLevel.OK)
    until(lambda: any(a.state == "resolved" for a in seen))


def test_resource_utilization_reports(page: dict[str, Any]) -> None:
    resource_monitor = page["resource_monitor"]
    path = page["folder"] / "path" / "to" / "report.csv"
    use(page["engine"])
    until(lambda: (resource_monitor.read("main-db", "query_duration", stat="count") or 0) >= 3)
    # --
    # Get a report for all database resources
    report = resource_monitor.generate_report(resource_type="database")

    # Get a report for a specific time range
    report = resource_monitor.generate_report(
        start_time=datetime.datetime.now() - datetime.timedelta(hours=24),
        end_time=datetime.datetime.now(),
    )

    # Export the report
    report.export_csv(str(path))
    # --
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"main-db", "process"} <= {row["resource"] for row in rows}
    assert "main-db" in str(report)


def test_dashboard_integration(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    resource_monitor = page["resource_monitor"]
    monkeypatch.setenv("UNO_DASHBOARD_TOKEN", "a-token-that-the-operator-chose")
    # --
    from uno.core.monitoring.integration import setup_monitoring

    app = FastAPI()
    setup_monitoring(
        app,
        resource_monitor=resource_monitor,
        enable_dashboard=True,
        dashboard_path="/monitoring/dashboard",
    )
    # --
    with TestClient(app) as client:
        assert client.get("/monitoring/dashboard/api/snapshot").status_code == 401
        headers = {"authorization": "Bearer a-token-that-the-operator-chose"}
        snapshot = client.get("/monitoring/dashboard/api/snapshot", headers=headers).json()
        assert "main-db" in [resource["id"] for resource in snapshot["resources"]]
        assert client.get("/health").status_code == 200
    resource_monitor.start()  # the application's end has stopped it


def test_prometheus_integration(page: dict[str, Any], promtool: str) -> None:
    resource_monitor = page["resource_monitor"]
    # --
    from uno.core.monitoring.integration import setup_prometheus_exporter

    # Setup the exporter
    exporter = setup_prometheus_exporter(resource_monitor)

    # In FastAPI
    app = FastAPI()
    app.include_router(exporter.router, prefix="/metrics", tags=["monitoring"])
    # --
    until(lambda: resource_monitor.read("main-db", "connection_pool_usage") is not None)
    with TestClient(app) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'connection_pool_usage{resource="main-db",database_name="' in answer.text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=answer.text, text=True, capture_output=True, check=False
    )
    assert "error" not in checked.stderr.lower(), checked.stderr


def test_resource_anomaly_detection(page: dict[str, Any]) -> None:
    resource_monitor = page["resource_monitor"]
    # --
    from uno.core.monitoring.resources import AnomalyDetector

    # Create an anomaly detector
    detector = AnomalyDetector()

    # Register with resource monitor
    resource_monitor.set_anomaly_detector(detector)

    # Configure anomaly detection for a specific resource
    resource_monitor.configure_anomaly_detection(
        resource_id="main-db",
        metric_name="query_duration",
        sensitivity=0.8,  # Higher values detect more subtle anomalies
        training_period=datetime.timedelta(days=7),  # Use 7 days of data for training
    )
    # --
    until(lambda: any("db.client.operation.duration" in key for key in detector.watched()))


def test_resource_dependency_mapping(page: dict[str, Any], dot: str) -> None:
    resource_monitor, folder = page["resource_monitor"], page["folder"] / "maps"
    page["resource_manager"].register(object(), id="orders", depends_on=["main-db"])
    # --
    # Generate a dependency graph
    dependency_graph = resource_monitor.generate_dependency_graph()

    # Export as various formats
    dependency_graph.export_dot(str(folder / "dependencies.dot"))
    dependency_graph.export_json(str(folder / "dependencies.json"))
    # --
    exported = json.loads((folder / "dependencies.json").read_text("utf-8"))
    edges = {(edge["source"], edge["target"], edge["kind"]) for edge in exported["edges"]}
    assert ("orders", "main-db", "declared") in edges
    drawn = subprocess.run([dot, "-Tsvg", str(folder / "dependencies.dot")], capture_output=True, check=False)
    assert drawn.returncode == 0, drawn.stderr


def test_custom_resource_monitors(page: dict[str, Any]) -> None:
    from uno.core.monitoring.integration import setup_prometheus_exporter

    resource_manager, resource_monitor = page["resource_manager"], page["resource_monitor"]
    # --
    from uno.core.monitoring.resources import ResourceTypeMonitor

    class DatabaseMonitor(ResourceTypeMonitor):
        """Custom monitor for database connections"""

        def __init__(self, resource_manager):
            super().__init__(resource_manager, resource_type="database")

        def setup_metrics(self):
            """Setup database-specific metrics"""
            self.add_metric(
                name="query_count",
                description="Number of queries executed",
                metric_type="counter",
                labels=["query_type", "database_name"],
            )
            self.add_metric(
                name="slow_queries",
                description="Number of slow queries",
                metric_type="counter",
                labels=["database_name"],
            )

        async def collect_metrics(self, resource):
            """Collect metrics for a specific database resource"""
            stats = await resource.get_statistics()
            self.update_metric(
                "query_count",
                stats["total_queries"],
                labels={"database_name": resource.name, "query_type": "all"},
            )
            self.update_metric(
                "slow_queries",
                stats["slow_queries"],
                labels={"database_name": resource.name},
            )

    # Register the custom monitor
    db_monitor = DatabaseMonitor(resource_manager)
    resource_monitor.register_type_monitor(db_monitor)
    # --
    main_db = page["main_db"]
    before = asyncio.run(main_db.get_statistics())["total_queries"]
    use(page["engine"], times=5)
    until(lambda: resource_monitor.read("main-db", "query_count", stat="total") == before + 5)
    name = main_db.name
    line = f'query_count{{resource="main-db",query_type="all",database_name="{name}"}} {before + 5}'
    assert line in setup_prometheus_exporter(resource_monitor).render().decode()
    report = resource_monitor.generate_report(resource_type="database")
    assert "query_count" in [row["metric"] for row in report.to_dicts()]


def test_the_samples_are_those_of_the_specification() -> None:
    """Where the specification lies beside the project, each of its lines of code stands above."""
    specification = Path(__file__).parents[3] / "shared" / "spec" / "resource-monitoring.md"
    if not specification.exists():
        pytest.skip("the specification is not beside this checkout")
    here = {line.strip() for line in Path(__file__).read_text("utf-8").splitlines()}
    blocks = specification.read_text("utf-8").split("```python\n")[1:]
    changed = {
        'report.export_csv("/path/to/report.csv")',
        'dependency_graph.export_dot("/path/to/dependencies.dot")',
        'dependency_graph.export_json("/path/to/dependencies.json")',
        "import datetime",
        "from uno.core.monitoring.resources import Threshold, AlertLevel",  # sorted here
    }
    for block in blocks:
        for line in block.split("```")[0].splitlines():
            assert not line.strip() or line.strip() in here | changed, line
