"""Does the dashboard let in whom it should, answer what the page expects, and cost nothing when nobody looks?"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import httpx
import pytest
import redis
from fastapi import Depends, FastAPI, Header, HTTPException
from sqlalchemy import Engine, create_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from tests.servers import HOST
from tests.web import BEARER, PATH, TOKEN, ask, mismatches, opened, served, stream, until
from uno.core.monitoring.dashboard import auth
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resources import ResourceMonitor, Threshold

WEAK = "sesame"
PASSWORD = "hunter2-do-not-show"
API = ["snapshot", "resource?id=shop-db", "series?resource=shop-db&metric=uno.resource.utilization"]
API += ["graph", "alerts", "report?hours=1", "report.csv?hours=1"]


class Shop(NamedTuple):
    """A served application and what it uses."""

    url: str
    monitor: ResourceMonitor
    engine: Engine
    pool: ThreadPoolExecutor

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        return ask("GET", self.url + path, **{"headers": BEARER, **options})

    def json(self, path: str) -> Any:
        answer = self.get(f"/api/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    engine = create_engine(f"sqlite:///{folder}/shop.sqlite", pool_size=4, max_overflow=0)
    away = create_engine(f"postgresql+psycopg://shop:{PASSWORD}@{HOST}:1/shop")
    cache = redis.Redis.from_url(f"redis://:{PASSWORD}@{HOST}:1/0")
    upstream = httpx.Client(base_url=f"http://shop:{PASSWORD}@{HOST}:1")
    pool = ThreadPoolExecutor(2)
    release = threading.Event()
    app = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.1, service="shop"), token=TOKEN)

    @app.get("/orders/{id}")
    def order(id: int) -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("select 1").scalar_one())

    monitor.manager.register(engine, id="shop-db", labels={"team": "orders"})
    monitor.manager.register(pool, id="pool", depends_on=["shop-db"])
    for target, id in ((away, "away-db"), (cache, "cache"), (upstream, "upstream")):
        monitor.manager.register(target, id=id)
    with served(app) as address, ExitStack() as ends:
        for action in (engine.dispose, away.dispose, cache.close, upstream.close, pool.shutdown, release.set):
            ends.callback(action)
        held = [ends.enter_context(engine.connect()) for _ in range(3)]
        assert len(held) == 3
        for _ in range(5):  # two run, three wait
            pool.submit(release.wait, 60)
        assert ask("GET", f"{address}/orders/1").status_code == 200
        with pytest.raises(redis.ConnectionError):
            cache.get("x")
        with pytest.raises(httpx.ConnectError):
            upstream.get("/")
        monitor.set_threshold("shop-db", "connection_pool_usage", Threshold(0.6, 0.9))
        until(lambda: monitor.alerts.active(), what="an alert")
        until(lambda: monitor.health_of("away-db").status.value == "down", what="the database that is away")
        until(lambda: monitor.series("pool"), what="the pool's figures")
        yield Shop(address + PATH, monitor, engine, pool)


# -- the door ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*API, "stream"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_without_a_token_nothing_is_said(shop: Shop, path: str, method: str) -> None:
    answer = ask(method, f"{shop.url}/api/{path}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["cache-control"] == "no-store"
    if method == "GET":
        assert answer.json() == {"error": "A token is needed."}


def test_without_a_token_the_page_is_only_its_form(shop: Shop) -> None:
    answer = ask("GET", f"{shop.url}/")
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")
    for name in ("shop-db", "pool", "away-db"):
        assert name not in answer.text


def test_a_wrong_token() -> None:
    wrong = ["Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer"]
    with opened(token=TOKEN) as (url, _):
        for header in wrong:
            answer = ask("GET", f"{url}/api/snapshot", headers={"authorization": header})
            assert (answer.status_code, answer.json()) == (401, {"error": "That token is not right."}), header
        assert ask("GET", f"{url}/api/snapshot", headers=BEARER).status_code == 200


def test_the_right_bearer(shop: Shop) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert shop.get("/api/alerts", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200


def test_a_token_is_exchanged_for_a_cookie(shop: Shop) -> None:
    with httpx.Client(verify=False) as browser:
        answer = browser.post(f"{shop.url}/api/session", json={"token": f" {TOKEN}\n"})
        assert (answer.status_code, answer.content) == (204, b"")
        cookies = answer.headers.get_list("set-cookie")
        assert cookies
        for cookie in cookies:
            flags = {part.strip().partition("=")[0].lower() for part in cookie.split(";")}
            assert {"httponly", "max-age"} <= flags
            assert "SameSite=Strict" in cookie
            assert "secure" not in flags, "there is no https here"
            assert "domain" not in flags
            assert TOKEN not in cookie
        assert f"Path={PATH};" in cookies[0]
        assert browser.get(f"{shop.url}/").status_code == 200
        assert browser.get(f"{shop.url}/api/snapshot").status_code == 200
        name, _, value = cookies[0].partition(";")[0].partition("=")
    expires, nonce, signature = value.split(".")
    forged = [
        f"{int(expires) + 1}.{nonce}.{signature}",
        f"{expires}.x{nonce}.{signature}",
        f"{expires}.{nonce}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{expires}.{nonce}.",
        "",
        TOKEN,
    ]
    for cookie in forged:
        answer = ask("GET", f"{shop.url}/api/snapshot", headers={"cookie": f"{name}={cookie}"})
        assert answer.status_code == 401, cookie
    assert ask("GET", f"{shop.url}/api/alerts", headers={"cookie": f"{name}={value}"}).status_code == 200


def test_a_cookie_is_secure_behind_https() -> None:
    with opened(token=TOKEN) as (url, _):
        headers = {"x-forwarded-proto": "https"}
        answer = ask("POST", f"{url}/api/session", json={"token": TOKEN}, headers=headers)
        assert all("Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {"token": "wrong"}}, 401),
        ({"json": {"token": 7}}, 400),
        ({"json": {}}, 400),
        ({"json": []}, 400),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[" * 4_000, "headers": {"content-type": "application/json"}}, 400),
        ({"json": {"token": "x" * 5_000}}, 413),
        ({"data": {"token": TOKEN}}, 415),
        ({"content": json.dumps({"token": TOKEN}), "headers": {"content-type": "text/plain"}}, 415),
        ({"json": {"token": TOKEN}, "headers": {"sec-fetch-site": "cross-site"}}, 403),
        ({"json": {"token": TOKEN}, "headers": {"sec-fetch-site": "same-site"}}, 403),
        ({"json": {"token": TOKEN}, "headers": {"origin": "http://evil.example"}}, 403),
        ({"json": {"token": TOKEN}, "headers": {"origin": "null"}}, 403),
    ],
)
def test_a_session_is_not_to_be_had(shop: Shop, options: dict[str, Any], status: int) -> None:
    answer = ask("POST", f"{shop.url}/api/session", **options)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert "set-cookie" not in answer.headers


def guess(url: str, n: int) -> list[int]:
    """The answers to ``n`` wrong tokens."""
    with httpx.Client(verify=False) as client:
        post = [{"url": f"{url}/api/session", "json": {"token": f"guess-{i}"}} for i in range(n)]
        return [client.post(**one).status_code for one in post]  # type: ignore[arg-type]


def test_guessing_is_bounded_and_does_not_lock_the_right_token_out() -> None:
    with opened(token=TOKEN) as (url, _):
        assert guess(url, 30) == [401] * 10 + [429] * 20
        refused = ask("GET", f"{url}/api/alerts", headers={"authorization": "Bearer guess"})
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "Too many wrong tokens" in refused.json()["error"]
        # Behind a proxy the one who guesses and the one who knows have the same address.
        assert ask("GET", f"{url}/api/alerts", headers=BEARER).status_code == 200
        assert ask("POST", f"{url}/api/session", json={"token": TOKEN}).status_code == 204


def test_a_token_that_could_be_guessed_is_bounded_too_and_soon_let_in_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth, "WINDOW", 20.0)
    with opened(token=WEAK) as (url, _):
        with httpx.Client(verify=False) as browser:
            assert browser.post(f"{url}/api/session", json={"token": WEAK}).status_code == 204
            assert guess(url, 12) == [401] * 10 + [429] * 2
            assert browser.get(f"{url}/api/alerts").status_code == 200, "who is in stays in"
        right = {"authorization": f"Bearer {WEAK}"}
        refused = ask("GET", f"{url}/api/alerts", headers=right)
        assert refused.status_code == 429, "else there would be no bound"
        assert int(refused.headers["retry-after"]) <= 3
        until(lambda: ask("GET", f"{url}/api/alerts", headers=right).status_code == 200, 4, "to be let in")
        assert guess(url, 2) == [401, 401]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": ""}, "non-empty"),
        ({"token": "  "}, "non-empty"),
        ({"token": "x", "allow_anonymous": True}, "exclude each other"),
        ({"token": "x", "dependencies": [Depends(int)]}, "exclude each other"),
        ({"dependencies": []}, "allow_anonymous=True"),
    ],
)
def test_misuse(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        setup_monitoring(FastAPI(), ResourceMonitor(), **options)


def test_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNO_DASHBOARD_TOKEN", TOKEN)
    with opened() as (url, _):
        assert ask("GET", f"{url}/api/alerts", headers=BEARER).status_code == 200


def test_a_token_that_nobody_chose_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    with opened() as (url, _):
        assert ask("GET", f"{url}/api/alerts").status_code == 401
        printed = capfd.readouterr().err
        (token,) = re.findall(r"#token=(\S+)", printed)
        assert len(token) >= 43
        bearer = {"authorization": f"Bearer {token}"}
        assert ask("GET", f"{url}/api/alerts", headers=bearer).status_code == 200


def staff_only(x_staff: str = Header("")) -> None:
    if x_staff != "yes":
        raise HTTPException(403, "staff only")


def test_dependencies_replace_the_token() -> None:
    staff = {"x-staff": "yes"}
    with opened(dependencies=[Depends(staff_only)]) as (url, monitor):
        until(lambda: monitor.store.frame is not None)
        paths = ["/", "/static/app.js", "/static/app.css", "/api/stream", "/api/nothing"]
        for path in ("", *paths, *(f"/api/{one}" for one in API)):
            answer = ask("GET", url + path, headers=BEARER)
            assert (answer.status_code, answer.json()) == (403, {"detail": "staff only"}), path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        for path in paths[:3]:
            assert ask("GET", url + path, headers=staff).status_code == 200, path
        assert ask("GET", f"{url}/api/snapshot", headers=staff).json()["service"] == "shop"
        assert ask("POST", f"{url}/api/session", json={"token": "x"}, headers=staff).status_code == 204
        assert ask("HEAD", f"{url}/", headers=staff).content == b""
        script = ask("GET", f"{url}/static/app.js", headers=staff)
        assert script.headers["cache-control"].startswith("private"), "a proxy must not give it to others"
        with stream(url, headers=staff) as events:
            assert next(events)["seq"] >= 1


def test_dependencies_see_the_application() -> None:
    seen = []

    def check(request: Request) -> None:
        seen.append(request.app)

    app = FastAPI()
    setup_monitoring(app, ResourceMonitor(interval=0.05), dependencies=[Depends(check)])
    with served(app) as address:
        assert ask("GET", f"{address}{PATH}/api/alerts").status_code == 200
        assert seen == [app]

        def closed() -> None:
            raise HTTPException(418)

        app.dependency_overrides[check] = closed
        assert ask("GET", f"{address}{PATH}/api/alerts").status_code == 418


def test_anonymous() -> None:
    with opened(allow_anonymous=True) as (url, _):
        assert ask("GET", f"{url}/").status_code == 200
        assert ask("GET", f"{url}/api/snapshot").json()["service"] == "shop"
        assert ask("POST", f"{url}/api/session", json={"token": "any"}).status_code == 204


# -- headers and addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["", "/", "/static/app.js", "/api/snapshot", "/api/stream", "/api/nothing", "/api/resource?id=x"]
)
@pytest.mark.parametrize("headers", [BEARER, {}], ids=["let in", "not let in"])
def test_the_headers_of_every_answer(shop: Shop, path: str, headers: dict[str, str]) -> None:
    with httpx.stream("GET", verify=False, url=shop.url + path, headers=headers) as answer:
        sent = answer.headers
    rules = dict(rule.strip().partition(" ")[::2] for rule in sent["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["trusted-types"] == "uno-map"
    assert "unsafe" not in sent["content-security-policy"]
    assert "http:" not in sent["content-security-policy"]
    assert "*" not in sent["content-security-policy"]
    assert sent["x-content-type-options"] == "nosniff"
    assert sent["x-frame-options"] == "DENY"
    assert sent["referrer-policy"] == "no-referrer"
    assert sent["cross-origin-opener-policy"] == sent["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in sent if name.startswith("access-control")]
    if not path.startswith("/static"):
        assert sent["cache-control"] == "no-store"


def test_the_assets_are_kept_and_asked_for_again_when_they_change(shop: Shop) -> None:
    page = shop.get().text
    links = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    assert len(links) == 2
    for link in links:
        answer = ask("GET", f"{shop.url}/{link}")
        assert answer.status_code == 200
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        etag = answer.headers["etag"]
        for known in (etag, f'"x", W/{etag}', "*"):
            again = ask("GET", f"{shop.url}/{link}", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
        assert ask("GET", f"{shop.url}/{link}", headers={"if-none-match": '"x"'}).status_code == 200
        plain = ask("GET", f"{shop.url}/{link}", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        old = ask("GET", f"{shop.url}/{link.partition('?')[0]}?v=old")
        assert old.headers["cache-control"] == "public, no-cache"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page), "nothing is inline"
    assert not [
        url for url in re.findall(r'(?:src|href)="([^"#][^"]*)"', page) if re.match(r"/|https?:", url)
    ]


def test_the_assets_are_small() -> None:
    with opened(token=TOKEN) as (url, _):
        size = 0
        for path in ("/", "/static/app.js", "/static/app.css"):
            with httpx.stream("GET", verify=False, url=url + path) as answer:
                size += len(b"".join(answer.iter_raw()))
        assert 20_000 < size <= 60 * 1024


@pytest.mark.parametrize("path", ["/", "/static/app.css", "/api/snapshot", "/api/graph", "/api/report.csv"])
def test_head(shop: Shop, path: str) -> None:
    get, head = shop.get(path), ask("HEAD", shop.url + path, headers=BEARER)
    assert (head.status_code, head.content) == (get.status_code, b"")
    for name in ("content-type", "content-security-policy", "cache-control"):
        assert head.headers[name] == get.headers[name]
    assert int(head.headers["content-length"]) > 0


def test_head_of_the_stream_does_not_stay_open(shop: Shop) -> None:
    answer = ask("HEAD", f"{shop.url}/api/stream", headers=BEARER, timeout=2)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/", "/static/", "/static/../app.py", "/api/snapshot/", "//"]
)
def test_nothing_is_there(shop: Shop, path: str) -> None:
    answer = shop.get(path)
    assert answer.status_code == 404
    assert "/api/snapshot" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/api/snapshot", "/static/app.js", "/api/stream"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading(shop: Shop, path: str, method: str) -> None:
    answer = ask(method, shop.url + path, headers=BEARER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_the_session_is_only_posted_to(shop: Shop) -> None:
    answer = shop.get("/api/session")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def prefix_stripping_proxy(prefix: str, upstream: str) -> Starlette:
    """What nginx does with ``location /prefix/ { proxy_pass http://upstream/; }``, and no header more."""

    async def onward(request: Request) -> Response:
        keep = ("cookie", "content-type", "accept-encoding", "authorization")
        headers = {k: v for k, v in request.headers.items() if k in keep}
        async with httpx.AsyncClient() as client:
            asked = client.build_request(
                request.method,
                f"{upstream}/{request.path_params['path']}",
                params=request.query_params,
                headers=headers,
                content=await request.body(),
            )
            answer = await client.send(asked)
        response = Response(answer.content, answer.status_code)
        for name, value in answer.headers.multi_items():
            if name not in ("content-length", "content-encoding", "date", "server"):
                response.headers.append(name, value)
        return response

    return Starlette(routes=[Route(f"{prefix}/{{path:path}}", onward, methods=["GET", "POST"])])


@pytest.mark.parametrize("how", ["plain", "mounted", "mounted twice", "proxy", "proxy with root path"])
def test_wherever_it_is_served(how: str) -> None:
    app: Any = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.05, service="shop"), token=TOKEN)
    prefix = {"plain": "", "mounted twice": "/a/b"}.get(how, "/shop")
    if how == "mounted":
        app = Starlette(routes=[Mount("/shop", app)])
    elif how == "mounted twice":
        app = Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", app)]))])
    root = "/shop" if how == "proxy with root path" else ""
    with ExitStack() as ends:
        ends.callback(monitor.stop)
        address = ends.enter_context(served(app, root_path=root))
        if how.startswith("proxy"):
            address = ends.enter_context(served(prefix_stripping_proxy(prefix, address)))
        with httpx.Client(verify=False) as browser:
            answer = browser.get(f"{address}{prefix}{PATH}")
            assert (answer.status_code, answer.headers["location"]) == (307, "dashboard/")
            page = urljoin(str(answer.url), answer.headers["location"])
            assert page == f"{address}{prefix}{PATH}/"
            shown = browser.get(page)
            assert shown.status_code == 401
            links = re.findall(r'(?:src|href)="((?:static|api)/[^"]+)"', shown.text)
            assert len(links) >= 3
            session = browser.post(urljoin(page, "api/session"), json={"token": TOKEN})
            assert session.status_code == 204
            for link in links:
                assert browser.get(urljoin(page, link)).status_code == 200, link
            assert browser.get(urljoin(page, "api/snapshot")).json()["service"] == "shop"
            for cookie in browser.cookies.jar:
                assert cookie.path in (f"{prefix}{PATH}", f"{prefix}{PATH}/api", PATH)


# -- what the page reads -------------------------------------------------------------------------------


def test_the_snapshot(shop: Shop) -> None:
    snapshot = shop.json("snapshot")
    assert mismatches(snapshot, "Snapshot") == []
    assert snapshot["service"] == "shop"
    assert snapshot["running"] is True
    assert abs(snapshot["now"] - time.time()) < 5
    cards = {card["id"]: card for card in snapshot["resources"]}
    assert {"shop-db", "pool", "away-db", "cache", "upstream", "process"} <= set(cards)
    db = cards["shop-db"]
    (use,) = [figure for figure in db["figures"] if figure["metric"] == "uno.resource.utilization"]
    assert (use["value"], use["text"]) == (0.75, "3 of 4")
    assert (db["type"], db["level"], db["labels"]["team"]) == ("database", "warning", "orders")
    assert db["library"].startswith("sqlalchemy ")
    assert db["spark"]["values"][-1] == 0.75
    assert len(db["spark"]["values"]) == len(db["spark"]["times"])
    assert db["spark"]["times"] == sorted(db["spark"]["times"])
    assert cards["away-db"]["level"] == "critical"
    assert cards["away-db"]["health"]["status"] == "down"
    levels = [card["level"] for card in snapshot["resources"]]
    assert levels[0] == "critical"
    assert levels == sorted(levels, key=["critical", "warning", "unknown", "ok"].index)
    assert snapshot["verdict"]["level"] == "critical"
    assert "need attention" in snapshot["verdict"]["text"]
    (alert,) = [one for one in snapshot["alerts"] if one["id"] in db["alerts"] and one["threshold"] == 0.6]
    assert (alert["level"], alert["state"], alert["value"], alert["threshold"]) == (
        "warning",
        "firing",
        0.75,
        0.6,
    )
    assert snapshot["cost"]["series"] == len(shop.monitor.store)


def test_a_resource(shop: Shop) -> None:
    db = shop.json("resource?id=shop-db")
    assert mismatches(db, "Detail") == []
    holders = {(one["site"].partition(":")[0].rpartition("/")[2], one["count"]) for one in db["holders"]}
    assert (Path(__file__).name, 3) in holders
    assert db["waiters"] == []
    metrics = {metric["name"]: metric for metric in db["metrics"]}
    assert metrics["uno.resource.utilization"]["series"][0]["value"] == 0.75
    assert "connection_pool_usage" in metrics["uno.resource.utilization"]["short"]
    (rule,) = [rule for rule in db["thresholds"] if rule["metric"] == "uno.resource.utilization"]
    assert (rule["warning"], rule["critical"], rule["level"], rule["default"]) == (0.6, 0.9, "warning", False)
    assert set(db["dependents"]) == {"pool", "GET /orders/{id}"}
    assert [alert["state"] for alert in db["alert_history"]][:1] == ["firing"]
    pool = shop.json("resource?id=pool")
    assert mismatches(pool, "Detail") == []
    assert pool["type"] == "thread_pool"
    assert pool["depends_on"] == ["shop-db"]
    figures = {figure["title"]: figure["value"] for figure in pool["figures"]}
    assert 3 in figures.values(), f"three tasks wait: {figures}"


@pytest.mark.parametrize("id", ["shop-db", "pool", "process", "event-loop"])
def test_every_metric_has_a_past(shop: Shop, id: str) -> None:
    metrics = shop.json(f"resource?id={id}")["metrics"]
    assert metrics
    for metric in metrics:
        past = shop.get("/api/series", params={"resource": id, "metric": metric["name"]})
        assert past.status_code == 200
        found = past.json()
        assert mismatches(found, "SeriesData") == []
        for line in found["series"]:
            assert len(line["values"]) == len(found["times"])
    by_short = shop.json("series?resource=shop-db&metric=connection_pool_usage")
    assert by_short["metric"] == "uno.resource.utilization"
    assert (by_short["warning"], by_short["critical"]) == (0.6, 0.9)
    assert by_short["series"][0]["values"][-1] == 0.75


def test_the_map(shop: Shop) -> None:
    graph = shop.json("graph")
    assert mismatches({k: graph[k] for k in ("nodes", "edges", "svg")}, "Graph") == []
    names = {node["id"]: node["name"] if node["kind"] == "route" else node["id"] for node in graph["nodes"]}
    edges = {(names[edge["source"]], names[edge["target"]], edge["kind"]) for edge in graph["edges"]}
    assert ("pool", "shop-db", "declared") in edges
    assert ("GET /orders/{id}", "shop-db", "observed") in edges
    assert graph["svg"].startswith("<svg")
    assert "<script" not in graph["svg"]


def test_alerts(shop: Shop) -> None:
    alerts = shop.json("alerts")
    assert set(alerts) == {"active", "history"}
    for alert in alerts["active"] + alerts["history"]:
        assert mismatches(alert, "Alert") == []
    assert "shop-db" in {alert["resource"] for alert in alerts["active"]}


def test_an_alert_that_is_over_is_history() -> None:
    depth = 9.0
    with opened(token=TOKEN) as (url, monitor):
        monitor.manager.register(object(), id="jobs", read=lambda: {"depth": depth})
        until(lambda: monitor.series("jobs", "depth"), what="the metric")
        monitor.set_threshold("jobs", "depth", Threshold(critical=5))
        until(lambda: ask("GET", f"{url}/api/alerts", headers=BEARER).json()["active"], what="the alert")
        depth = 1.0
        until(lambda: not ask("GET", f"{url}/api/alerts", headers=BEARER).json()["active"], what="its end")
        (alert,) = ask("GET", f"{url}/api/alerts", headers=BEARER).json()["history"]
        assert mismatches(alert, "Alert") == []
        assert (alert["state"], alert["resource"]) == ("resolved", "jobs")
        assert alert["resolved_at"] >= alert["fired_at"] >= alert["since"]


def test_reports(shop: Shop) -> None:
    report = shop.json("report?hours=1")
    assert "shop-db" in json.dumps(report)
    answer = shop.get("/api/report.csv?type=database")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert "shop-db" in answer.text
    assert "pool," not in answer.text


def test_an_unknown_resource_is_named_beside_near_ones(shop: Shop) -> None:
    answer = shop.get("/api/resource?id=shop-bd")
    assert answer.status_code == 404
    assert "shop-bd" in answer.json()["error"]
    assert "shop-db" in answer.json()["error"]
    metric = shop.get("/api/series?resource=shop-db&metric=nothing")
    assert metric.status_code == 404
    assert "uno.resource.utilization" in metric.json()["error"]


SERIES = "series?resource=shop-db&metric=uno.resource.utilization"


@pytest.mark.parametrize(
    "path",
    [
        "resource",
        "resource?id=",
        "resource?id=" + "x" * 5_000,
        "resource?id=%00%ff",
        "resource?" + "&".join(f"f{n}=1" for n in range(60)),
        "snapshot?" + "&".join(f"f{n}=1" for n in range(60)) + "&strict=1",
        "series",
        "series?resource=shop-db",
        "series?resource=shop-db&metric=",
        f"{SERIES}&start=x",
        f"{SERIES}&start=nan",
        f"{SERIES}&end=inf",
        f"{SERIES}&end=1e300",
        f"{SERIES}&points=x",
        f"{SERIES}&points=nan",
        f"{SERIES}&start=2&end=1",
        f"{SERIES}&start=1&end=1",
        "report?hours=0",
        "report?hours=-1",
        "report?hours=nan",
        "report?hours=1e9",
        "report?hours=x",
        "report?hours=1e-12",
        "report?type=nothing",
        "report.csv?type=%ff",
    ],
)
def test_bad_questions(shop: Shop, path: str) -> None:
    answer = shop.get(f"/api/{path}")
    if path.startswith("snapshot"):
        assert answer.status_code in (200, 400), "what is not asked for may be there"
    else:
        assert 400 <= answer.status_code < 500, answer.text
        assert len(answer.json()["error"]) > 5


@pytest.mark.parametrize(
    "query",
    [
        "start=-1e10",
        "start=-1e10&end=1e10&points=1e9",
        "end=1e10&start=9e9",
        "points=-5",
        "points=0",
        "points=1.5",
    ],
)
def test_odd_questions_have_an_answer(shop: Shop, query: str) -> None:
    answer = shop.json(f"{SERIES}&{query}")
    assert mismatches(answer, "SeriesData") == []
    assert len(answer["times"]) <= 4_100


def test_no_answer_holds_a_password(shop: Shop) -> None:
    ids = [card["id"] for card in shop.json("snapshot")["resources"]]
    paths = ["/", *(f"/api/{one}" for one in API), *(f"/api/resource?id={id}" for id in ids)]
    read = ""
    for path in paths:
        answer = shop.get(path)
        assert answer.status_code == 200
        read += answer.text
    with stream(shop.url) as events:
        read += json.dumps(next(events))
    for id in ("away-db", "cache", "upstream"):
        assert id in read
    assert f"{HOST}:1" in read, "the addresses themselves are shown"
    assert PASSWORD not in read
    assert TOKEN not in read
