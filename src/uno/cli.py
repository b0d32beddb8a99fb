"""What can be done from a shell? ``uno types``, ``uno check URL``, ``uno new-type NAME``, ``uno demo``."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from uno import __version__

MAX_BODY = 10_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 well, 1 not well, 2 wrong use or no answer."""
    parser = argparse.ArgumentParser(prog="uno", description="The resource monitor for Python services.")
    parser.add_argument("--version", action="version", version=f"uno {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    types = commands.add_parser("types", help="list the kinds of resource that are recognised")
    types.add_argument("--json", action="store_true", help="as JSON")
    check = commands.add_parser("check", help="ask a service's health endpoint; the exit code tells")
    check.add_argument("url", help="for example http://127.0.0.1:8000/health")
    check.add_argument(
        "--timeout", type=_seconds, default=5.0, metavar="SECONDS", help="how long to wait (default 5)"
    )
    check.add_argument("--json", action="store_true", help="print the answer as it is")
    new = commands.add_parser(
        "new-type", help="write a resource type of your own to begin with, and its test"
    )
    new.add_argument("name", help="what the type is called, for example memcached")
    new.add_argument("--path", default=".", metavar="DIR", help="the folder to write to (default: this one)")
    commands.add_parser("demo", help="run the demo shop with its live page", add_help=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever a terminal can show
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command == "demo":
        return _demo(rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        if chosen.command == "types":
            code = _types(as_json=chosen.json)
        elif chosen.command == "check":
            code = _check(chosen.url, chosen.timeout, as_json=chosen.json)
        elif chosen.command == "new-type":
            code = _new_type(chosen.name, chosen.path)
        else:
            parser.print_help()
            code = 2
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        _drop_output()
        code = 1
    except OSError as error:  # a full disk
        _drop_output()
        print(f"uno: {error.strerror or error}", file=sys.stderr)
        code = 2
    return code


def _drop_output() -> None:
    """For the flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"seconds, more than 0 and at most 3600, not {text}")
    return value


def _types(*, as_json: bool) -> int:
    from uno.core.monitoring.resource_types import load

    rows = sorted(
        (kind.resource_type, target, kind.tested)
        for kind in load().kinds
        for target in kind.targets
        if not target.startswith("uno.")
    )
    if as_json:
        print(json.dumps([{"type": a, "class": b, "tested": c} for a, b, c in rows], indent=2))
        return 0
    for kind, target, tested in rows:
        print(f"{kind:<15} {target:<50} {tested}".rstrip())
    return 0


def _check(url: str, timeout: float, *, as_json: bool) -> int:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"[\s\x00-\x1f]", url)
    except ValueError:
        good = False
    if "@" in url:  # urllib cannot use it, and nothing shows it
        print("uno check: give the address without user and password", file=sys.stderr)
        return 2
    if not good:
        print(f"uno check: {url!r} is no http or https address", file=sys.stderr)
        return 2
    request = Request(url, headers={"accept": "application/health+json, application/json"})
    place = url.partition("?")[0]  # a query may hold a token
    try:
        body = _fetch(request, timeout)
    except (URLError, OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        print(f"uno check: no answer from {place}: {reason}", file=sys.stderr)
        return 2
    try:
        found: Any = json.loads(body)
        status, lines = found["status"], list(_troubles(found))
        if not isinstance(status, str):
            raise TypeError(status)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        print(f"uno check: {place} is no health endpoint of uno", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for line in (f"{status}: {place}", *lines):
            print("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line))
    return 0 if status in ("pass", "warn") else 1


def _fetch(request: Request, timeout: float) -> bytes:
    """The answer's body, whatever its status; TimeoutError when it is not there whole in time."""
    until = time.monotonic() + timeout
    try:
        answer = urlopen(request, timeout=timeout)
    except HTTPError as error:  # which is an answer too
        answer = error
    body = b""
    with answer:
        while part := answer.read1(65_536):
            body += part
            if len(body) > MAX_BODY:
                raise OSError(f"more than {MAX_BODY:,} bytes")
            if time.monotonic() > until:
                raise TimeoutError("timed out")
    return body


def _troubles(found: Any) -> Iterator[str]:
    for name, entries in sorted(found.get("checks", {}).items()):
        for entry in entries if isinstance(entries, list) else [entries]:
            if entry.get("status") != "pass":
                yield f"  {entry.get('status')}  {name}  {entry.get('output', '')}".rstrip()


def _new_type(name: str, path: str) -> int:
    from uno.new_type import new_type

    try:
        written = new_type(name, path)
    except (ValueError, OSError) as error:
        print(f"uno new-type: {error}", file=sys.stderr)
        return 2
    for file in written:
        print(f"wrote {file}")
    print(f"now: pytest {written[1]}, then follow the comments in {written[0].name}")
    return 0


def _demo(arguments: Sequence[str]) -> int:
    import importlib.util

    missing = [
        name for name in ("fastapi", "uvicorn", "httpx", "sqlalchemy") if not importlib.util.find_spec(name)
    ]
    if missing:
        print(f"uno demo needs {', '.join(missing)}: pip install 'uno-monitor[demo]'", file=sys.stderr)
        return 2
    import runpy

    sys.argv = ["uno demo", *arguments]
    try:
        runpy.run_module("uno.demo", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
