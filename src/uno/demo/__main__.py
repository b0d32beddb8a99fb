"""How is the demo started, and how does it end? ``python -m uno.demo``; Ctrl-C.

The main thread starts everything, listens to keys and signals, and ends everything within 2 s, whatever the shop's
event loop is doing: so the shop runs in a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

    from uno.demo.incidents import Incidents

DASHBOARD = "/monitoring/dashboard/"
ORDERLY = 1.4  # seconds that the shop has to end by itself


def main() -> int:
    """Run the demo until Ctrl-C, SIGTERM or ``q``. Returns the exit code."""
    host, port = _address()
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            print(f"Port {port} is in use; choose another one: PORT={port + 1} make demo", file=sys.stderr)
        else:
            print(f"uno demo cannot listen on {host} port {port}: {error.strerror}", file=sys.stderr)
        return 1
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)-8s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("uno.alerts").setLevel(logging.INFO)  # also what is over
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    code = 0
    with contextlib.ExitStack() as at_the_end:
        try:
            code = _run(listener, host, at_the_end)
        except KeyboardInterrupt:
            pass
        finally:  # from here on nothing interrupts
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # The shop is stuck, and Python would wait for it. All that is outside of this process has gone by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _address() -> tuple[str, int]:
    parser = argparse.ArgumentParser(prog="python -m uno.demo", description="A small shop under uno's eyes.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        default=os.environ.get("PORT") or "8000",
        help="port to listen on (default: $PORT, else 8000)",
    )
    arguments = parser.parse_args()
    if not (arguments.port.isascii() and arguments.port.isdigit() and int(arguments.port) < 65_536):
        parser.error(f"the port is a number from 1 to 65535, not {arguments.port!r}")
    return arguments.host, int(arguments.port)


def _run(listener: socket.socket, host: str, at_the_end: contextlib.ExitStack) -> int:
    """Start all parts, then wait for the end; ``at_the_end`` learns how each part ends."""
    at_the_end.callback(listener.close)
    folder = Path(tempfile.mkdtemp(prefix="uno-demo-"))
    at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)

    from uno.demo.servers import start_servers

    servers, missing = start_servers(folder)
    for variable, needed in servers.items():
        os.environ[variable] = needed.url
        at_the_end.callback(needed.close)

    from uno.demo.upstream import PriceService

    upstream = PriceService()
    at_the_end.callback(upstream.close)
    os.environ.update(SHOP_FOLDER=str(folder), PRICES_URL=upstream.url)
    token = os.environ.setdefault("UNO_DASHBOARD_TOKEN", secrets.token_urlsafe(16))

    import uvicorn

    from uno.demo import faults, shop
    from uno.demo.incidents import Incidents, make_router
    from uno.demo.traffic import Client

    at = host if host not in ("0.0.0.0", "::") else "127.0.0.1"
    port = listener.getsockname()[1]
    incidents = Incidents(Client(at, port), upstream)
    shop.app.include_router(faults.router)
    shop.app.include_router(make_router(incidents, shop.monitor, DASHBOARD))
    server = uvicorn.Server(
        uvicorn.Config(shop.app, log_config=None, access_log=False, timeout_graceful_shutdown=0)
    )
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not server.should_exit
    )  # it counts whom it cuts off
    ended, ends = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(server, listener, ends), name="demo-shop", daemon=True)
    at_the_end.callback(_stop, server, thread, incidents)
    thread.start()
    while not server.started:
        thread.join(0.02)
        if not thread.is_alive():
            return 1
    incidents.open_shop()

    url = f"http://{f'[{at}]' if ':' in at else at}:{port}"
    print(f"\n  Dashboard  {url}{DASHBOARD}#token={token}\n  Incidents  {url}/#token={token}")
    print(f"  Prometheus {url}/metrics\n")
    if missing:
        print(f"  Not installed, so not shown: {', '.join(missing)}\n")
    keys = at_the_end.enter_context(_keys())
    print(f"  {'1 to 5 start and stop incidents, q quits' if keys else 'Ctrl-C ends it'}\n", flush=True)
    while True:
        readable, _, _ = select.select([ended.fileno(), *keys], [], [])
        if ended.fileno() in readable:
            return 1  # the shop ended by itself, and has said why
        for key in os.read(keys[0], 64).decode(errors="replace"):
            if key in "qQ\x04":
                return 0
            if key.isdigit() and 0 < int(key) <= len(incidents.all):
                _toggle(incidents, list(incidents.all)[int(key) - 1])


def _toggle(incidents: Incidents, name: str) -> None:
    running = incidents.remaining(name) > 0
    (incidents.stop if running else incidents.start)(name)
    print(f"  {incidents.all[name].title}: {'stopped' if running else 'started'}", flush=True)


def _serve(server: uvicorn.Server, listener: socket.socket, ends: socket.socket) -> None:
    """The shop's thread; closing ``ends`` tells the main thread that it is over."""
    with ends:
        server.run([listener])


def _stop(server: uvicorn.Server, thread: threading.Thread, incidents: Incidents) -> None:
    """End the shop in good order, if it can within the time: its event loop may be blocked."""
    deadline = time.monotonic() + ORDERLY
    server.should_exit = True
    incidents.close()
    thread.join(max(0.1, deadline - time.monotonic()))


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """The terminal's descriptor, in a mode that gives single keys; nothing where there is none."""
    try:
        import termios
        import tty
    except ImportError:
        yield []
        return
    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (AttributeError, OSError, ValueError, termios.error):
        yield []
        return
    if _in_background(terminal):
        yield []
        return
    tty.setcbreak(terminal)
    try:
        yield [terminal]
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _in_background(terminal: int) -> bool:
    """Whether the shell runs us with ``&``: the system stops who then touches the terminal."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # not the terminal that controls us
        return False


if __name__ == "__main__":
    sys.exit(main())
