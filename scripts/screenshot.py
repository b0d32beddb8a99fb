"""Make docs/images/dashboard.png: the dashboard of the running demo, while its queries are slow."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

from playwright.sync_api import sync_playwright

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "dashboard.png"
TOKEN = "screenshot"
WARM_UP, INCIDENT = 40.0, 12.0  # seconds: RabbitMQ is there after ten, and the sparklines need some history


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    demo = subprocess.Popen(
        [sys.executable, "-m", "uno.demo"],
        env={**os.environ, "PORT": str(port), "UNO_DASHBOARD_TOKEN": TOKEN},
        stdin=subprocess.DEVNULL,
    )
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
            time.sleep(WARM_UP)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{url}/monitoring/dashboard/#token={TOKEN}")
            urlopen(Request(f"{url}/incidents/slow-queries", method="POST"), timeout=5).close()
            page.get_by_text("faults.py").first.wait_for()
            page.wait_for_timeout(INCIDENT * 1000)
            IMAGE.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=IMAGE, full_page=True)
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(10)
    print(f"{IMAGE.relative_to(Path.cwd())}: {IMAGE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
