"""Does the page show what is, to everybody, whatever happens to the application meanwhile?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.servers import HOST, free_port
from tests.web import PATH, TOKEN, ask, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

PAGES = {"overview": "#/", "resource": "#/resource/shop-db", "map": "#/map", "alerts": "#/alerts"}
WIDTHS = (360, 768, 1440)
HISTORY = re.compile(r"History \d+")  # the number comes with the list


class Site:
    """The application in a process of its own, which a test may kill and start again on the same port."""

    def __init__(self, scene: str) -> None:
        self.scene, self.port = scene, free_port()
        self.address = f"http://{HOST}:{self.port}"
        self.url = f"{self.address}{PATH}/"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="uno-test-site-")
        self._log = Path(self._folder.name) / "log"
        self.start()

    def start(self, token: str = TOKEN) -> None:
        command = [sys.executable, "-m", "uvicorn", "tests.browser.shop:app", "--port", str(self.port)]
        environment = {
            **os.environ,
            "SCENE": self.scene,
            "UNO_DASHBOARD_TOKEN": token,
            "TMPDIR": self._folder.name,
        }
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [*command, "--log-level", "critical"],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            until(lambda: process.poll() is not None or self.ticks(token) > 0, 60, "the application's start")
        except BaseException:
            self.kill()
            raise
        if process.poll() is not None:
            pytest.fail(f"the application did not start: {self._log.read_text()[-2_000:]}")

    def ticks(self, token: str = TOKEN) -> int:
        """How many ticks the monitor remembers."""
        try:
            headers = {"authorization": f"Bearer {token}"}
            found = ask("GET", f"{self.url}api/snapshot", headers=headers).json()
        except httpx.TransportError:
            return 0
        return max((len(card["spark"]["times"]) for card in found["resources"] if card["spark"]), default=0)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()

    def post(self, path: str) -> None:
        assert ask("POST", self.address + path).status_code == 200


def _site(scene: str) -> Iterator[Site]:
    site = Site(scene)
    yield site
    site.close()


@pytest.fixture(scope="module")
def _shop() -> Iterator[Site]:
    yield from _site("shop")


@pytest.fixture
def shop(_shop: Site) -> Iterator[Site]:
    """The shop, calm before and after each test."""
    yield _shop
    _shop.post("/release")


@pytest.fixture(scope="module")
def bare() -> Iterator[Site]:
    yield from _site("bare")


@pytest.fixture(scope="module")
def many() -> Iterator[Site]:
    yield from _site("many")


@pytest.fixture(scope="module")
def hostile() -> Iterator[Site]:
    yield from _site("hostile")


@pytest.fixture
def demo() -> Iterator[str]:
    """The address of the demo's page."""
    with tempfile.TemporaryDirectory(prefix="uno-test-demo-") as folder:
        port, log = free_port(), Path(folder) / "log"
        environment = {**os.environ, "PORT": str(port), "UNO_DASHBOARD_TOKEN": TOKEN, "TMPDIR": folder}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "uno.demo"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            until(lambda: "Incidents  http" in log.read_text(), 60, "the demo's page")
            yield re.search(r"Incidents\s+(http\S+)", log.read_text())[1]  # type: ignore[index]
        finally:
            process.terminate()
            process.wait(20)


VIOLATIONS = """window.violations = []; addEventListener('securitypolicyviolation',
    e => violations.push(e.violatedDirective + ' ' + e.blockedURI))"""


class Watched:
    """What a page said and asked for that no page of the dashboard may."""

    def __init__(self, page: Page) -> None:
        self.page, self.said, self.asked = page, list[str](), list[str]()
        page.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def check(self, expected: str = "^$") -> None:
        assert [text for text in self.said if not re.search(expected, text)] == []
        foreign = [
            url for url in self.asked if urlsplit(url).hostname != HOST and not url.startswith("data:")
        ]
        assert foreign == []
        assert self.page.evaluate("window.violations || []") == []


@contextmanager
def opened(
    browser: Browser, site: Site, where: str = "#/", expected: str = "^$", width: int = 1280, **options: Any
) -> Iterator[Page]:
    """The page as somebody sees it who is signed in. ``expected`` are console messages that may come."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    try:
        page = signed_in(context, site)
        watched = Watched(page)
        page.goto(site.url + where)
        expect(page.locator(".link.live, .link.stopped")).to_be_visible()
        yield page
        watched.check(expected)
    finally:
        context.close()


def signed_in(context: BrowserContext, site: Site) -> Page:
    context.add_init_script(VIOLATIONS)
    page = context.new_page()
    page.set_default_timeout(10_000)
    answer = context.request.post(f"{site.url}api/session", data={"token": TOKEN})
    assert answer.status == 204
    return page


def card(page: Page, name: str) -> Locator:
    return page.locator("article.card").filter(has=page.get_by_role("link", name=name, exact=True))


# -- the token -----------------------------------------------------------------------------------------

REFUSED = "status of 401"


@contextmanager
def stranger(browser: Browser, site: Site, hash: str = "") -> Iterator[Page]:
    """The page as somebody sees it who was never there."""
    context = browser.new_context()
    try:
        context.add_init_script(VIOLATIONS)
        page = context.new_page()
        watched = Watched(page)
        page.goto(site.url + hash)
        yield page
        watched.check(f"{REFUSED}|preloaded using link preload")
    finally:
        context.close()


def test_the_printed_address_opens_the_page(browser: Browser, shop: Site) -> None:
    with stranger(browser, shop, f"#token={TOKEN}") as page:
        expect(card(page, "shop-db")).to_be_visible()
        assert page.url == f"{shop.url}#/"
        assert TOKEN not in page.evaluate("JSON.stringify([document.cookie, localStorage, sessionStorage])")
        assert page.evaluate("document.cookie") == "", "scripts cannot read it"
        page.reload()
        expect(card(page, "shop-db")).to_be_visible()
        page.go_back()
        assert TOKEN not in page.url


def test_the_form(browser: Browser, shop: Site) -> None:
    with stranger(browser, shop) as page:
        box = page.get_by_label("Token")
        expect(box).to_be_visible()
        expect(page.locator("article.card")).to_have_count(0)
        box.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That token is not right.")
        expect(box).to_be_focused()
        box.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(card(page, "shop-db")).to_be_visible()


def test_the_printed_address_where_the_page_is_open_already(browser: Browser, shop: Site) -> None:
    with stranger(browser, shop) as page:
        expect(page.get_by_label("Token")).to_be_visible()
        page.goto(f"{shop.url}#token={TOKEN}")  # the same document: the browser only changes the hash
        expect(card(page, "shop-db")).to_be_visible()
        assert TOKEN not in page.url


@pytest.mark.parametrize("hash", ["#token=wrong", "#token=%E0%A4%A", "#token="])
def test_an_address_with_a_bad_token(browser: Browser, shop: Site, hash: str) -> None:
    with stranger(browser, shop, hash) as page:
        expect(page.get_by_label("Token")).to_be_visible()
        assert "token=" not in page.url


# -- what is shown -------------------------------------------------------------------------------------


def test_the_overview(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        expect(page.get_by_role("heading", level=1)).to_contain_text("resources are well")
        database = card(page, "shop-db")
        expect(database).to_contain_text("0 of 4")
        expect(database.get_by_role("meter")).to_have_attribute("aria-valuenow", "0")
        expect(card(page, "printers")).to_contain_text("Up")
        assert page.title() == "Overview · shop · uno"
        page.get_by_label("Search resources").fill("team=orders")
        expect(page.locator("article.card")).to_have_count(1)
        assert "q=team" in page.url
        page.reload()
        expect(page.locator("article.card")).to_have_count(1)
        page.get_by_label("Search resources").fill("no such thing")
        page.get_by_role("button", name="Show all").click()
        expect(card(page, "printers")).to_be_visible()
        page.get_by_label("Type", exact=True).select_option("thread_pool")
        expect(page.locator("article.card")).to_have_count(1)


def test_a_sparkline_begins_before_the_page_was_opened(browser: Browser, shop: Site) -> None:
    until(lambda: shop.ticks() >= 8, 15, "a past")
    with opened(browser, shop) as page:
        line = card(page, "shop-db").locator(".spark .line").get_attribute("d") or ""
        assert len(re.findall(r"[\d.]+ [\d.]+", line)) >= 8


def test_a_resource(browser: Browser, shop: Site) -> None:
    shop.post("/hold/3")
    with opened(browser, shop) as page:
        page.get_by_role("link", name="shop-db", exact=True).click()
        expect(page.get_by_role("heading", name="shop-db", level=1)).to_be_visible()
        assert page.url.endswith("#/resource/shop-db")
        held = page.get_by_role("region", name="Held by")
        expect(held).to_contain_text("tests/browser/shop.py")
        expect(held).to_contain_text("POST /hold/{n}")
        expect(page.get_by_role("region", name="Thresholds")).to_contain_text("> 60 %")
        expect(page.locator(".plot canvas").first).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("In use over"))).to_be_visible()
        page.get_by_role("button", name="Show as table").click()
        expect(page.get_by_role("region", name="In use, table")).to_contain_text("75 %")
        page.get_by_role("button", name="1 h", exact=True).click()
        assert "range=1h" in page.url
        page.go_back()
        expect(card(page, "shop-db")).to_be_visible()


def test_a_resource_that_is_not_there(browser: Browser, shop: Site) -> None:
    with opened(browser, shop, "#/resource/shop-bd", "status of 404") as page:
        expect(page.get_by_role("main")).to_contain_text("shop-db")
        page.get_by_role("link", name="All resources").click()
        expect(card(page, "shop-db")).to_be_visible()


def test_the_map(browser: Browser, shop: Site) -> None:
    with opened(browser, shop, "#/map") as page:
        picture = page.get_by_role("region", name="Dependency map")
        expect(picture).to_contain_text("printers")
        picture.locator("a", has_text="shop-db").first.click()
        expect(page.get_by_role("heading", name="shop-db", level=1)).to_be_visible()
        page.go_back()
        page.get_by_role("button", name="Show as table").click()
        row = page.get_by_role("row").filter(has_text="declared")
        expect(row).to_contain_text("printers")
        expect(row).to_contain_text("shop-db")


def test_an_alert_comes_and_goes_without_a_reload(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        text = page.get_by_text("The pool is nearly used up")
        expect(text).to_have_count(0)
        shop.post("/hold/4")
        expect(text).to_be_visible(timeout=3_000)
        expect(page.get_by_role("heading", level=1)).to_contain_text("shop-db is saturated")
        expect(page.get_by_role("status")).to_contain_text("Critical")
        expect(page).to_have_title(re.compile(r"^\(\d+\) "))
        page.get_by_role("link", name="Alerts").click()
        expect(page.locator(".active")).to_contain_text("The pool is nearly used up")
        expect(page.locator(".active")).to_contain_text("In use 100 %, limit 90 %")
        shop.post("/release")
        history = page.get_by_role("region", name="Alert history")
        expect(page.locator(".active")).to_have_count(0, timeout=5_000)
        expect(history).to_contain_text("The pool is nearly used up")
        page.get_by_role("link", name="Overview").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("are well")
        expect(page).to_have_title(re.compile(r"^Overview"))


def test_pages_of_one_browser_share_one_stream(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as first:
        second = first.context.new_page()
        watched = Watched(second)
        second.goto(shop.url)
        expect(second.locator(".link.live")).to_be_visible()
        shop.post("/hold/4")
        expect(second.get_by_text("The pool is nearly used up")).to_be_visible(timeout=3_000)
        assert [url for url in watched.asked if url.endswith("api/stream")] == []
        first.goto("about:blank")
        shop.post("/release")
        expect(second.get_by_text("The pool is nearly used up")).to_have_count(0, timeout=5_000)
        assert [url for url in watched.asked if url.endswith("api/stream")] != []
        watched.check()


def test_pause(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        page.keyboard.press("p")
        expect(page.locator(".notice")).to_contain_text("Paused.")
        shop.post("/hold/4")
        seen = shop.ticks()
        until(lambda: shop.ticks() > min(seen + 2, 59), 10, "ticks")
        expect(page.get_by_text("The pool is nearly used up")).to_have_count(0)
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("The pool is nearly used up")).to_be_visible(timeout=3_000)


# -- to everybody --------------------------------------------------------------------------------------

FOCUS = """() => {
    const e = document.activeElement, box = e.getBoundingClientRect();
    const drawn = s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;
    const ring = drawn(getComputedStyle(e)) || drawn(getComputedStyle(e, '::after'));
    const inside = box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight;
    const at = document.elementFromPoint(box.left + Math.min(8, box.width / 2), box.top + Math.min(8, box.height / 2));
    const name = (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || '').trim();
    return {tag: e.localName, name, ring, seen: inside && (e.contains(at) || at?.contains(e) || false)};
}"""


def test_by_keyboard_alone(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        expect(card(page, "shop-db")).to_be_visible()
        names = []
        for _ in range(30):
            page.keyboard.press("Tab")
            focus = page.evaluate(FOCUS)
            if focus["tag"] == "body":
                break
            assert focus["ring"], f"the focus cannot be seen on {focus}"
            assert focus["seen"], f"{focus} is covered or out of sight"
            names.append(focus["name"])
        cards = ["shop-db", "printers", "process", "event-loop"]
        begin = ["Skip to the content", "unoshop", "Overview", "Map", "Alerts", "Pause"]
        assert names[: len(begin)] == begin
        assert set(cards) <= set(names)
        assert names.index("Search resources") < min(names.index(name) for name in cards)
        assert len(names) == len(set(names)), "no trap"
        page.reload()
        expect(card(page, "shop-db")).to_be_visible()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        expect(page.get_by_label("Search resources")).to_be_focused()
        page.get_by_role("link", name="shop-db", exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="shop-db", level=1)).to_be_visible()
        page.keyboard.press("Escape")
        expect(card(page, "shop-db")).to_be_visible()


SEARCH_KEY = """async () => {
    document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true, cancelable: true}));
    for (let i = 0; i < 5; i++) await null;  // what a browser does before the next key
    return document.activeElement.id }"""


@pytest.mark.parametrize("name", PAGES)
def test_what_is_typed_after_the_search_key_is_searched_for(browser: Browser, shop: Site, name: str) -> None:
    with opened(browser, shop, PAGES[name]) as page:
        assert page.evaluate(SEARCH_KEY) == "search"
        page.keyboard.type("1p?")
        search = page.get_by_label("Search resources")
        expect(search).to_have_value("1p?")
        expect(page).to_have_url(re.compile(r"#/\?q=1p"))
        expect(search).to_be_focused()


def test_keys(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        page.keyboard.press("/")
        expect(page.get_by_label("Search resources")).to_be_focused()
        page.keyboard.type("1?p")
        expect(page.get_by_label("Search resources")).to_have_value("1?p")
        page.keyboard.press("Escape")
        expect(page.get_by_label("Search resources")).to_have_value("")
        for key, where in (("2", "#/map"), ("3", "#/alerts"), ("1", "#/")):
            page.keyboard.press(key)
            expect(page).to_have_url(shop.url + where)
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        page.keyboard.press("j")
        first = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.textContent") != first
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.textContent") == first
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        page.keyboard.press("t")
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core, which judges accessibility."""
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (files("axe_playwright_python") / "axe.min.js").read_text()


RUN_AXE = """() => axe.run({resultTypes: ['violations']}).then(r => r.violations.map(v => v.id + ': '
    + v.nodes.slice(0, 3).map(n => n.target + ' ' + (n.any[0]?.message || '')).join(' | ')))"""
TOO_WIDE = """[document.documentElement.scrollWidth - innerWidth, [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll, .vh, .skip, pre, svg, .plot') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 90)).slice(0, 3)]"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits(browser: Browser, shop: Site, axe: str, scheme: Any) -> None:
    shop.post("/hold/4")
    with opened(browser, shop, color_scheme=scheme) as page:
        page.evaluate(axe)
        assert page.evaluate("axe.version") >= "4.10"
        waits = {
            "overview": page.get_by_text("The pool is nearly used up"),
            "resource": page.locator(".plot canvas").first,
            "map": page.get_by_role("region", name="Dependency map").locator("svg"),
            "alerts": page.locator(".active"),
        }
        for name, where in PAGES.items():
            page.evaluate("where => { location.hash = where }", where)
            expect(waits[name].first).to_be_visible()
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                over, elements = page.evaluate(TOO_WIDE)
                assert (over, elements) == (0, []), f"{name} at {width} px"
                assert page.evaluate(RUN_AXE) == [], f"{name} at {width} px"
        page.evaluate("document.querySelector('main').append(document.createElement('input'))")
        assert any(line.startswith("label:") for line in page.evaluate(RUN_AXE)), "it would have seen a fault"


def test_the_demos_page_is_accessible_and_fits(browser: Browser, demo: str, axe: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        watched = Watched(page)
        page.goto(demo)
        page.get_by_role("button", name="Start: ").first.click()
        expect(page.get_by_role("button", name="Stop: ")).to_be_visible()
        expect(page.locator("#alerts .cause").first).to_be_visible(timeout=20_000)
        page.evaluate(axe)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                over, elements = page.evaluate(TOO_WIDE)
                assert (over, elements) == (0, []), f"{scheme} at {width} px"
                assert page.evaluate(RUN_AXE) == [], f"{scheme} at {width} px"
        watched.check()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_asked_for_that(browser: Browser, shop: Site, motion: Any) -> None:
    context = browser.new_context(reduced_motion=motion)
    try:
        page = signed_in(context, shop)
        page.route("**/api/snapshot", lambda route: None)  # it stays at the loading state
        page.goto(shop.url, wait_until="commit")
        expect(page.locator(".wait").first).to_be_visible()
        moving = page.evaluate("getComputedStyle(document.querySelector('.wait')).animationName")
        assert moving == ("none" if motion == "reduce" else "wait")
    finally:
        context.close()


# -- whatever happens ----------------------------------------------------------------------------------

GONE = "ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET_NOT"


def test_the_application_goes_away_and_comes_back(browser: Browser) -> None:
    site = Site("shop")
    try:
        with opened(browser, site, expected=f"{GONE}|{REFUSED}") as page:
            expect(card(page, "shop-db")).to_be_visible()
            site.kill()
            expect(page.locator(".notice.lost")).to_contain_text("The connection is lost.", timeout=8_000)
            expect(page.locator(".link.lost")).to_contain_text("Reconnecting")
            expect(page.get_by_role("heading", level=1)).to_contain_text("Last known")
            expect(card(page, "shop-db")).to_be_visible()
            expect(page.get_by_role("status")).to_contain_text("Connection lost")
            page.keyboard.press("3")
            expect(page.get_by_role("heading", name="Alerts")).to_be_visible()
            expect(page.locator(".group .empty")).to_be_visible()
            site.start()
            expect(page.locator(".notice")).to_have_count(0, timeout=6_000)
            expect(page.get_by_role("heading", name=HISTORY)).to_be_visible(timeout=5_000)
            page.keyboard.press("1")
            site.post("/hold/4")
            expect(page.get_by_text("The pool is nearly used up")).to_be_visible(timeout=3_000)
            site.kill()
            site.start("another-token-after-the-restart")
            expect(page.get_by_label("Token")).to_be_visible(timeout=8_000)
            page.get_by_label("Token").fill("another-token-after-the-restart")
            page.keyboard.press("Enter")
            expect(card(page, "shop-db")).to_be_visible()
            expect(page.locator(".link.live")).to_be_visible()
    finally:
        site.close()


def test_a_page_that_is_opened_while_nothing_answers(browser: Browser, shop: Site) -> None:
    context = browser.new_context()
    try:
        page = signed_in(context, shop)
        page.route("**/api/*", lambda route: route.abort())
        page.goto(shop.url)
        expect(page.get_by_text("The application does not answer")).to_be_visible()
        page.unroute("**/api/*")
        expect(card(page, "shop-db")).to_be_visible(timeout=6_000)
    finally:
        context.close()


def test_the_monitor_is_stopped_and_started(browser: Browser, shop: Site) -> None:
    with opened(browser, shop) as page:
        shop.post("/stop")
        try:
            expect(page.locator(".notice")).to_contain_text("The monitor is stopped.", timeout=8_000)
            expect(page.locator(".link")).to_have_text("Monitor stopped")
            expect(card(page, "shop-db")).to_contain_text("0 %")
        finally:
            shop.post("/start")
        expect(page.locator(".notice")).to_have_count(0, timeout=8_000)
        expect(page.locator(".link")).to_have_text("Live")


def test_an_application_without_resources(browser: Browser, bare: Site) -> None:
    with opened(browser, bare) as page:
        expect(card(page, "process")).to_be_visible()
        expect(page.locator(".welcome")).to_contain_text("monitor.manager.register(engine")
        page.keyboard.press("2")
        expect(page.get_by_role("heading", name="Map")).to_be_visible()
        page.keyboard.press("3")
        expect(page.get_by_text("Nothing is alarming.")).to_be_visible()
        expect(page.get_by_role("heading", name=HISTORY)).to_be_visible()


def test_a_thousand_resources(browser: Browser, many: Site) -> None:
    begun = time.monotonic()
    with opened(browser, many) as page:
        expect(page.locator("article.card .spark").first).to_be_visible()
        first = time.monotonic() - begun
        expect(page.locator("article.card")).to_have_count(1_005)
        drawn = page.locator("article.card .spark").count()
        assert 4 <= drawn <= 60, "what cannot be seen is not drawn"
        expect(page.locator("article.card", has_text="queue-0999").locator(".spark")).to_have_count(0)
        begun = time.monotonic()
        for _ in range(5):  # cards take their true size as they come into sight, and the end moves on
            page.keyboard.press("End")
            page.wait_for_timeout(100)
        expect(page.locator("article.card", has_text="queue-0999").locator(".spark")).to_be_visible()
        scrolled = time.monotonic() - begun
        begun = time.monotonic()
        page.get_by_label("Search resources").fill("queue-0500")
        expect(page.locator("article.card")).to_have_count(1)
        searched = time.monotonic() - begun
        expect(page.locator("article.card .spark")).to_have_count(1)
        page.get_by_role("link", name="queue-0500").click()
        expect(page.get_by_role("heading", name="queue-0500")).to_be_visible()
        before = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        print(  # noqa: T201 - figures for who runs it with -s
            f"\n1,000 resources: opened {first:.2f} s, {drawn} cards drawn, to the end {scrolled:.2f} s, "
            f"searched {searched:.2f} s, heap {before:.0f} MiB"
        )


def test_going_back_to_search_does_not_take_the_focus_to_a_card(browser: Browser, many: Site) -> None:
    with opened(browser, many) as page:
        page.mouse.wheel(0, 2_000)
        until(lambda: page.evaluate("scrollY") > 500)
        page.locator("a.open").nth(40).click()
        expect(page.locator("main h1")).to_be_visible()
        page.keyboard.press("/")
        page.wait_for_timeout(500)
        expect(page.get_by_label("Search resources")).to_be_focused()
        expect(page.get_by_label("Search resources")).to_be_in_viewport()


def test_hostile_names(browser: Browser, hostile: Site) -> None:
    with opened(browser, hostile, width=360) as page:
        expect(page.locator("article.card").first).to_be_visible()
        expect(page.get_by_role("heading", level=3).first).to_be_visible()
        expect(page.get_by_text("<img src=x onerror").first).to_be_visible()
        pages = [*PAGES.values(), *(f"#/resource/hostile-{n}" for n in range(7)), "#/map?table=1"]
        pages.remove(PAGES["resource"])
        for where in pages:
            page.evaluate("where => { location.hash = where }", where)
            expect(page.locator("main h1")).to_be_visible()
            expect(page.locator("main .wait.tall")).to_have_count(0)
            over, elements = page.evaluate(TOO_WIDE)
            assert (over, elements) == (0, []), where
            assert page.evaluate("window.hacked") is None, where
            assert page.locator("main img, main script, main iframe, [onload], [onerror]").count() == 0
            assert "\u202e" not in page.locator("main").inner_text() + page.title(), where
