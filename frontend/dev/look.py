"""Does every page look and behave as intended? Screenshots, axe, layout, console and CSP checks in headless Chromium.

    python frontend/dev/serve.py & python frontend/dev/look.py [OUT] [PATTERN]

Needs playwright (Python) and Chromium; axe-core comes from node_modules. Exits 1 when something is wrong.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "shots")
WANTED = re.compile(sys.argv[2] if len(sys.argv) > 2 else "")
BASE = "http://127.0.0.1:8765"
PAGES = {
    "overview": "busy/#/",
    "overview-ok": "ok/#/",
    "resource": "busy/#/resource/shop-db?range=15m",
    "resource-table": "busy/#/resource/upstream?table=1&range=5m",
    "resource-gone": "busy/#/resource/nothing",
    "map": "busy/#/map",
    "map-table": "busy/#/map?table=1",
    "alerts": "busy/#/alerts",
    "empty": "empty/#/",
    "many": "many/#/",
    "filtered": "many/#/?q=database-00&type=database",
    "stopped": "stopped/#/",
    "stalled": "stalled/#/",
    "token": "token/#/",
    "hostile": "hostile/#/",
    "hostile-map": "hostile/#/map",
}
AXE = (HERE.parent / "node_modules/axe-core/axe.min.js").read_text()
RUN_AXE = """axe.run().then(r => r.violations.map(v => v.id + ': '
    + v.nodes.slice(0, 3).map(n => n.target + ' ' + (n.any[0]?.message || '')).join(' | ')))"""
OVERFLOW = """[document.documentElement.scrollWidth - innerWidth,
    [...document.querySelectorAll('main *, header *')]
        .filter(e => !e.closest('.scroll, .vh, pre, svg, .plot') && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 90)).slice(0, 3)]"""
EXPECTED = re.compile(r"status of 40[14]")

bad = 0
OUT.mkdir(parents=True, exist_ok=True)
with sync_playwright() as p:
    browser = p.chromium.launch(
        executable_path="/usr/bin/chromium",
        args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
    )
    for name, path in PAGES.items():
        for scheme in ("light", "dark"):
            for width in (360, 768, 1440):
                shot = f"{name}-{width}-{scheme}"
                if not WANTED.search(shot):
                    continue
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                said: list[str] = []
                page.on(
                    "console",
                    lambda m, said=said: said.append(m.text) if m.type in ("error", "warning") else None,
                )
                page.on("pageerror", lambda e, said=said: said.append(str(e)))
                page.goto(f"{BASE}/{path}")
                page.wait_for_timeout(2600)
                over = page.evaluate(OVERFLOW)
                page.screenshot(path=OUT / f"{shot}.png", full_page=name not in ("many",))
                page.evaluate(AXE)
                found = page.evaluate(RUN_AXE)
                problems = [f"console: {s}" for s in said if not EXPECTED.search(s)] + [
                    f"axe: {v}" for v in found
                ]
                if over[0] > 0 or over[1]:
                    problems.append(f"overflow: {over}")
                bad += len(problems)
                print(shot, "ok" if not problems else "\n  " + "\n  ".join(problems), flush=True)
                context.close()
    browser.close()
sys.exit(bad > 0)
