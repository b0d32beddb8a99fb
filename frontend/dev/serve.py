"""What does the page look like without an application? A made-up service behind the real JSON contract.

    python frontend/dev/serve.py [PORT]        then open http://127.0.0.1:8765/busy/

The first part of the path chooses the scenario: ok, busy, empty, many (1,000 resources), stopped, lost (answers for
8 s, then fails), stalled, hostile (names that try to break out), token (the token is "sesame").
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "src/uno/core/monitoring/dashboard/static"
sys.path.insert(0, str(ROOT / "src"))
from uno.core.monitoring.graph import DependencyGraph, Edge, Node  # noqa: E402

STARTED = time.time() - 4000
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'"
)
USE = "uno.resource.utilization"
HOSTILE = '"><img src=x onerror=alert(1)></script>\u202e{{7*7}} =cmd\n' + "long" * 60

# type -> figures: (metric, title, unit, kind, typical value)
FIGURES: dict[str, list[tuple[str, str, str, str, float]]] = {
    "database": [
        ("db.client.connection.pending_requests", "Waiting", "{request}", "gauge", 0),
        ("db.client.operation.duration", "Query p95", "s", "histogram", 0.0042),
        ("uno.resource.errors", "Errors", "{error}/s", "counter", 0),
    ],
    "redis": [
        ("db.client.operation.duration", "Command p95", "s", "histogram", 0.00031),
        ("db.client.connection.pending_requests", "Waiting", "{request}", "gauge", 0),
    ],
    "http_client": [
        ("http.client.requests", "Requests", "{request}/s", "counter", 41),
        ("http.client.request.duration", "Request p95", "s", "histogram", 0.085),
        ("uno.http.client.error_ratio", "Failing", "1", "gauge", 0.002),
    ],
    "thread_pool": [
        ("thread_pool.queue.size", "Queued", "{task}", "gauge", 2),
        ("thread_pool.task.duration", "Task p95", "s", "histogram", 0.22),
    ],
    "task_queue": [
        ("task_queue.size", "Depth", "{task}", "gauge", 34),
        ("task_queue.oldest_age", "Oldest", "s", "gauge", 1.8),
        ("task_queue.processed", "Processed", "{task}/s", "counter", 12),
    ],
    "file_handles": [("file.io", "Throughput", "By/s", "counter", 184_000)],
    "process": [
        ("process.cpu.utilization", "CPU", "{cpu}", "gauge", 0.31),
        ("process.memory.usage", "Memory", "By", "gauge", 164e6),
        ("process.thread.count", "Threads", "{thread}", "gauge", 14),
    ],
    "event_loop": [
        ("uno.asyncio.loop.lag", "Lag p95", "s", "histogram", 0.0011),
        ("uno.asyncio.loop.tasks", "Tasks", "{task}", "gauge", 23),
    ],
}
LIMITS = {"database": 10, "redis": 50, "http_client": 100, "thread_pool": 8, "file_handles": 1024}
SHOP = [
    ("shop-db", "database", "shop.sqlite", 0.4),
    ("orders-db", "database", "postgresql://db1:5432/orders", 0.55),
    ("reports-db", "database", "postgresql://db2:5432/reports", 0.12),
    ("cache", "redis", "redis1:6379/0", 0.22),
    ("upstream", "http_client", "payments.internal:443", 0.3),
    ("search", "http_client", "search.internal:9200", 0.06),
    ("thumbnails", "thread_pool", None, 0.5),
    ("emails", "task_queue", None, 0.0),
    ("files", "file_handles", None, 0.08),
    ("process", "process", None, 0.0),
    ("loop-main", "event_loop", None, 0.0),
]


def wave(seed: str, t: float, base: float, spread: float = 0.35) -> float:
    """A smooth, repeatable, never negative signal."""
    r = random.Random(seed)
    a, b, c = (r.uniform(0, 6.28) for _ in range(3))
    noise = random.Random(f"{seed}{int(t)}").uniform(-0.5, 0.5)
    return max(
        0.0,
        base
        * (
            1
            + spread
            * (
                0.5 * math.sin(t / 23 + a)
                + 0.3 * math.sin(t / 7 + b)
                + 0.2 * math.sin(t / 301 + c)
                + 0.4 * noise
            )
        ),
    )


class World:
    """One scenario, computed from the time alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.born = time.time()
        self.rows = list(SHOP)
        if name == "empty":
            self.rows = []
        if name == "many":
            kinds = list(FIGURES)
            self.rows = [
                (
                    f"{kinds[i % 8].replace('_', '-')}-{i // 8:03d}",
                    kinds[i % 8],
                    f"host{i % 40}:5432",
                    0.1 + i % 7 / 10,
                )
                for i in range(1000)
            ]
        if name == "hostile":
            self.rows = [
                (HOSTILE, "database", HOSTILE, 0.4),
                ("a/b c?d#e&f%", "x" * 80, None, 0.1),
                ("日本語のデータベース", "custom", None, 0.2),
            ]

    def level(self, id: str) -> str:
        if self.name == "many":
            n = zlib.crc32(id.encode()) % 97
            return "critical" if n == 3 else "warning" if n in (5, 9) else "unknown" if n == 11 else "ok"
        if self.name in ("busy", "lost", "stalled", "token"):
            return {"shop-db": "critical", "upstream": "warning", "search": "unknown"}.get(id, "ok")
        return "critical" if self.name == "hostile" else "ok"

    def use(self, id: str, base: float, t: float) -> float:
        if self.level(id) == "critical" and t > STARTED + 3940:
            return 1.0
        return min(1.0, wave(id, t, base))

    def health(self, id: str) -> dict[str, Any]:
        level, t = self.level(id), STARTED + 3940
        status, reason = {
            "ok": ("up", ""),
            "warning": ("degraded", "18 % of the requests failed in the last 10 s: ConnectTimeout"),
            "critical": ("saturated", "all connections are in use, 7 requests wait"),
            "unknown": ("unknown", "no answer within 1 s"),
        }[level]
        return {"status": status, "reason": reason, "since": t, "checked": time.time() - 1}

    def figures(self, id: str, kind: str, base: float, t: float) -> list[dict[str, Any]]:
        out = []
        level = self.level(id)
        if base:
            u = self.use(id, base, t)
            limit = LIMITS.get(kind, 20)
            out.append(
                {
                    "metric": USE,
                    "title": "In use",
                    "value": u,
                    "unit": "1",
                    "text": f"{round(u * limit)} of {limit}",
                }
            )
        for metric, title, unit, _, typical in FIGURES.get(kind, []):
            v: float | None = wave(id + metric, t, typical)
            if unit.startswith("{") and not unit.endswith("/s") and typical > 1:
                v = float(round(v or 0))
            if level == "critical":
                v = {"Waiting": 7.0, "Query p95": 1.24, "Errors": 3.2}.get(title, v)
            if level == "warning" and title == "Failing":
                v = 0.18
            if level == "unknown":
                v = None
            out.append({"metric": metric, "title": title, "value": v, "unit": unit, "text": ""})
        return out[:4]

    def spark_value(self, id: str, kind: str, base: float, t: float) -> float | None:
        if self.level(id) == "unknown" and t > STARTED + 3960:
            return None
        if base:
            return self.use(id, base, t)
        return wave(id + FIGURES[kind][0][0], t, FIGURES[kind][0][4])

    def alerts(self) -> list[dict[str, Any]]:
        def alert(of: str, **more: Any) -> dict[str, Any]:
            return {
                "id": f"{of}/1",
                "resource": of,
                "metric": USE,
                "title": "In use",
                "labels": {},
                "source": "threshold",
                "level": "critical",
                "state": "firing",
                "value": 1.0,
                "threshold": 0.9,
                "unit": "1",
                "message": "Database connection pool utilization high",
                "cause": "10 of 10 connections held: shop/app.py:88 in leak, longest 48 s",
                "since": STARTED + 3938,
                "fired_at": STARTED + 3940,
                "resolved_at": None,
                **more,
            }

        failing = {
            "level": "warning",
            "metric": "uno.http.client.error_ratio",
            "title": "Failing",
            "value": 0.18,
            "threshold": 0.1,
            "message": "Requests to payments.internal fail",
            "cause": "ConnectTimeout in 18 of 100 requests: POST /charge",
        }
        out = []
        for id, *_ in self.rows:
            level = self.level(id)
            if level == "critical":
                out.append(
                    alert(id, **({"message": HOSTILE, "cause": HOSTILE} if self.name == "hostile" else {}))
                )
            elif level == "warning":
                out.append(alert(id, **failing))
        if self.name == "busy":
            out.append(
                alert(
                    "orders-db",
                    id="orders-db/2",
                    level="warning",
                    state="pending",
                    value=0.72,
                    threshold=0.7,
                    cause="",
                    message="Database connection pool utilization high",
                    fired_at=None,
                    since=time.time() - 4,
                    source="threshold",
                )
            )
        return out

    def history(self) -> list[dict[str, Any]]:
        base = dict((self.alerts() or World("busy").alerts())[0])
        return [
            {
                **base,
                "id": f"old/{i}",
                "state": "resolved",
                "since": STARTED + 300 * i,
                "fired_at": STARTED + 300 * i + 5,
                "resolved_at": STARTED + 300 * i + 65 + 17 * i,
                "level": "warning" if i % 3 else "critical",
                "value": 0.8 + i / 50,
            }
            for i in range(12)
        ]

    def verdict(self) -> dict[str, str]:
        bad = [id for id, *_ in self.rows if self.level(id) in ("critical", "warning")]
        if not self.rows:
            return {"level": "unknown", "text": "Nothing is monitored yet."}
        if not bad:
            return {"level": "ok", "text": f"All {len(self.rows)} resources are well."}
        text = f"{len(bad)} of {len(self.rows)} resources need attention: {bad[0]} is 100 % used"
        return {"level": "critical", "text": text + ("; upstream is failing." if "upstream" in bad else ".")}

    def resource(self, row: tuple[str, str, str | None, float], t: float) -> dict[str, Any]:
        id, kind, endpoint, base = row
        times = [t - 59 + i for i in range(60)]
        metric, title, unit = (USE, "In use", "1") if base else FIGURES[kind][0][:3]
        return {
            "id": id,
            "name": id,
            "type": kind,
            "endpoint": endpoint,
            "labels": {"team": "checkout"} if kind == "database" else {},
            "discovered": kind in ("process", "event_loop"),
            "library": {"database": "sqlalchemy 2.1.9", "redis": "redis 6.4.0"}.get(kind),
            "note": "outside tested versions: read only" if id == "search" else "",
            "health": self.health(id),
            "level": self.level(id),
            "figures": self.figures(id, kind, base, t),
            "spark": {
                "metric": metric,
                "title": title,
                "unit": unit,
                "min": 0,
                "max": 1 if base else None,
                "times": times,
                "values": [self.spark_value(id, kind, base, x) for x in times],
            },
            "alerts": [a["id"] for a in self.alerts() if a["resource"] == id] if self.name != "many" else [],
        }

    def now(self) -> float:
        if self.name == "stopped":
            return STARTED + 3990
        return STARTED + 3990 if self.name == "stalled" else time.time()

    def cost(self) -> dict[str, Any]:
        return {
            "cpu_ratio": 0.003,
            "tick_seconds": 0.0011,
            "series": 9 * len(self.rows),
            "history_bytes": 1_834_567,
            "retention_seconds": 3600,
        }

    def snapshot(self) -> dict[str, Any]:
        t = self.now()
        return {
            "version": "0.1.0",
            "service": "shop",
            "host": "web-1",
            "pid": 4711,
            "started": STARTED,
            "now": time.time() if self.name == "stalled" else t,
            "interval": 1.0,
            "running": self.name != "stopped",
            "last_tick": t,
            "verdict": self.verdict(),
            "cost": self.cost(),
            "discovery": [
                {"resource": "loop-main", "how": "running event loop"},
                {"resource": "process", "how": "always there"},
            ]
            if self.rows
            else [],
            "resources": [self.resource(row, t) for row in self.rows],
            "alerts": self.alerts(),
        }

    def tick(self, seq: int) -> dict[str, Any]:
        t = self.now()
        return {
            "now": t,
            "seq": seq,
            "running": True,
            "verdict": self.verdict(),
            "cost": self.cost(),
            "added": [],
            "removed": [],
            "alerts": self.alerts(),
            "resources": {
                id: {
                    "level": self.level(id),
                    "health": self.health(id),
                    "figures": self.figures(id, kind, base, t),
                    "v": self.spark_value(id, kind, base, t),
                }
                for id, kind, _, base in self.rows
            },
        }

    def metrics(self, row: tuple[str, str, str | None, float], t: float) -> list[dict[str, Any]]:
        id, kind, _, base = row
        out = []
        if base:
            out.append(
                {
                    "name": USE,
                    "title": "In use",
                    "kind": "gauge",
                    "unit": "1",
                    "description": "Share of the limit that is in use",
                    "short": ["connection_pool_usage"],
                    "series": [
                        {
                            "labels": {},
                            "value": self.use(id, base, t),
                            "stats": {"value": self.use(id, base, t)},
                        }
                    ],
                }
            )
        if kind == "database":
            states = [("idle", 1 - base), ("used", base)]
            out.append(
                {
                    "name": "db.client.connection.count",
                    "title": "Connections",
                    "kind": "gauge",
                    "unit": "{connection}",
                    "description": "Connections of the pool by state",
                    "short": ["connections"],
                    "series": [
                        {
                            "labels": {"state": s},
                            "value": 1,
                            "stats": {"value": round(10 * wave(id + s, t, b))},
                        }
                        for s, b in states
                    ],
                }
            )
        for metric, title, unit, sort, typical in FIGURES.get(kind, []):
            v = wave(id + metric, t, typical)
            stats = {
                "gauge": {"value": v},
                "counter": {"total": 1e5, "rate": v},
                "histogram": {"count": 9, "rate": 9.0, "mean": v / 2, "p95": v, "max": v * 1.2},
            }[sort]
            out.append(
                {
                    "name": metric,
                    "title": title.replace(" p95", " time"),
                    "kind": sort,
                    "unit": unit.removesuffix("/s"),
                    "description": "",
                    "short": [],
                    "series": [{"labels": {}, "value": v, "stats": stats}],
                }
            )
        return out

    def detail(self, id: str) -> dict[str, Any] | None:
        row = next((r for r in self.rows if r[0] == id), None)
        if row is None:
            return None
        t = self.now()
        hot = self.level(id) == "critical"
        holders = [
            {"site": "shop/app.py:88 in leak", "caller": "POST /incident/leak", "since": t - 48, "count": 7},
            {
                "site": "shop/app.py:41 in checkout",
                "caller": "GET /orders/{id}",
                "since": t - 0.4,
                "count": 3,
            },
        ]
        return {
            **self.resource(row, t),
            "metrics": self.metrics(row, t),
            "holders": holders if hot else holders[1:] if row[1] == "database" else [],
            "waiters": [
                {
                    "site": "shop/app.py:41 in checkout",
                    "caller": "GET /orders/{id}",
                    "since": t - 6,
                    "count": 5,
                },
                {"site": "shop/jobs.py:12 in nightly", "caller": None, "since": t - 3, "count": 2},
            ]
            if hot
            else [],
            "thresholds": [
                {
                    "metric": USE,
                    "title": "In use",
                    "unit": "1",
                    "warning": 0.7,
                    "critical": 0.9,
                    "direction": "above",
                    "for": 5,
                    "message": "Database connection pool utilization high",
                    "level": self.level(id),
                    "default": True,
                }
            ],
            "depends_on": ["server:db1:5432"],
            "dependents": ["GET /orders/{id}", "reports-db"],
            "health_history": [
                {"time": STARTED + 3940, **{k: self.health(id)[k] for k in ("status", "reason")}},
                {"time": STARTED, "status": "up", "reason": ""},
            ],
            "alert_history": [a for a in self.alerts() if a["resource"] == id] + self.history()[:4],
            "anomalies": [
                {
                    "metric": "db.client.operation.duration",
                    "state": "learning, 3 min of 7 days",
                    "started": None,
                    "explanation": "",
                },
                {
                    "metric": USE,
                    "state": "watching",
                    "started": t - 40,
                    "explanation": "1.00, usually 0.31 to 0.52 at this time; seen in 1 of 9,000 ticks",
                },
            ]
            if row[1] == "database"
            else [],
        }

    def series(self, id: str, metric: str, start: float, end: float, points: int) -> dict[str, Any]:
        row = next(r for r in self.rows if r[0] == id)
        m = next(m for m in self.metrics(row, end) if m["name"] == metric)
        start = max(start, STARTED)
        step = max(1.0, (end - start) / points)
        times = [start + i * step for i in range(int((end - start) / step) + 1)]
        stats = {"gauge": ["value"], "counter": ["rate"], "histogram": ["p95", "mean"]}[m["kind"]]
        lines = []
        for k, s in enumerate(m["series"]):
            for stat in stats:
                values: list[float | None] = []
                for t in times:
                    now = self.metrics(row, t)
                    v = next(x for x in now if x["name"] == metric)["series"][k]["stats"][stat]
                    values.append(None if STARTED + 3600 < t < STARTED + 3630 else v)
                lines.append({"labels": s["labels"], "stat": stat, "values": values})
        return {
            "resource": id,
            "metric": metric,
            "title": m["title"],
            "unit": m["unit"],
            "kind": m["kind"],
            "times": times,
            "series": lines,
            "warning": 0.7 if metric == USE else None,
            "critical": 0.9 if metric == USE else None,
            "exact": True,
        }

    def graph(self) -> dict[str, Any]:
        ids = [r[0] for r in self.rows][:40]
        if not ids:
            return {"nodes": [], "edges": [], "svg": ""}
        level = self.level
        nodes = [Node(r[0], r[0], r[1], "resource", level(r[0]), r[2] or "") for r in self.rows[:40]]  # type: ignore[arg-type]
        routes = ["GET /orders/{id}", "POST /checkout", "GET /products", "task nightly"]
        nodes += [Node(r, r, "route", "task" if r[0] == "t" else "route") for r in routes]
        nodes += [
            Node("server:db1", "db1:5432", "postgresql", "server"),
            Node("server:pay", "payments.internal:443", "https", "server"),
        ]
        edges = [
            Edge(routes[i % 4], id, "observed", 100 * i + 7, 3.7 * i + 0.2, 3 * (i % 5 == 4))
            for i, id in enumerate(ids[:7])
        ]
        edges += [Edge(routes[1], ids[0], "observed", 950, 12.0, 31), Edge(ids[0], ids[-1], "declared")]
        if self.name not in ("hostile", "many"):
            edges += [
                Edge("orders-db", "server:db1", "observed", 900, 8.1),
                Edge("upstream", "server:pay", "observed", 800, 41.0, 18),
                Edge("emails", "cache", "declared"),
            ]
        g = DependencyGraph(nodes, edges)
        return {**g.to_dict(), "svg": g.to_svg()}


WORLDS: dict[str, World] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def send(
        self, body: bytes | str | Any, kind: str = "application/json", status: int = 200, **headers: str
    ) -> None:
        data = (
            body
            if isinstance(body, bytes)
            else body.encode()
            if isinstance(body, str)
            else json.dumps(body, ensure_ascii=False).encode()
        )
        self.send_response(status)
        for k, v in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": CSP,
            "X-Content-Type-Options": "nosniff",
            **headers,
        }.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        self.wfile.write(data)

    def world(self) -> tuple[World | None, str, dict[str, str]]:
        url = urlsplit(self.path)
        first, _, rest = url.path.lstrip("/").partition("/")
        world = (
            WORLDS.setdefault(first, World(first))
            if first in ("ok", "busy", "empty", "many", "stopped", "lost", "stalled", "hostile", "token")
            else None
        )
        return world, unquote(rest), {k: v[0] for k, v in parse_qs(url.query).items()}

    def do_POST(self) -> None:
        _, rest, _ = self.world()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if rest == "api/session" and body.get("token") == "sesame":
            self.send_response(204)
            self.send_header("Set-Cookie", "uno=sesame; HttpOnly; SameSite=Strict; Path=/token")
            self.end_headers()
        else:
            self.send({"error": "That token is not right."}, status=401)

    def do_GET(self) -> None:
        world, rest, q = self.world()
        if world is None:
            return self.send({"error": "no such scenario"}, status=404)
        if world.name == "lost" and time.time() - world.born > 8 and rest.startswith("api/"):
            self.close_connection = True
            return self.connection.close()
        locked = world.name == "token" and "uno=sesame" not in self.headers.get("Cookie", "")
        if rest == "":
            return self.send(
                (STATIC / "index.html").read_text().replace("{{version}}", "dev"),
                "text/html; charset=utf-8",
                401 if locked else 200,
            )
        if rest in ("static/app.js", "static/app.css"):
            return self.send(
                (STATIC / rest[7:]).read_bytes(), "text/javascript" if rest.endswith("js") else "text/css"
            )
        if locked:
            return self.send({"error": "A token is needed."}, status=401)
        match rest:
            case "api/snapshot":
                self.send(world.snapshot())
            case "api/resource":
                d = world.detail(q["id"])
                self.send(
                    d if d else {"error": f"unknown resource '{q['id']}'. Did you mean 'shop-db'?"},
                    status=200 if d else 404,
                )
            case "api/series":
                self.send(
                    world.series(
                        q["resource"], q["metric"], float(q["start"]), float(q["end"]), int(q["points"])
                    )
                )
            case "api/graph":
                self.send(world.graph())
            case "api/alerts":
                self.send(
                    {"active": world.alerts(), "history": world.history() if world.name != "ok" else []}
                )
            case "api/stream":
                self.stream(world)
            case _:
                self.send({"error": "not found"}, status=404)

    def stream(self, world: World) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self.wfile.write(b"retry: 250\n\n")
            for _ in range(10):
                if world.name not in ("stopped", "stalled"):
                    seq = int(time.time() - STARTED)
                    data = json.dumps(world.tick(seq))
                    self.wfile.write(f"event: tick\nid: {seq}\ndata: {data}\n\n".encode())
                self.wfile.flush()
                time.sleep(1 - time.time() % 1)
                if world.name == "lost" and time.time() - world.born > 8:
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8765
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print(
        f"http://127.0.0.1:{port}/busy/   (ok, busy, empty, many, stopped, lost, stalled, hostile, token)",
        flush=True,
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
