"""How does a test serve an application for real, and what may the page expect of an answer?"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tests.servers import HOST, free_port
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resources import ResourceMonitor

PATH = "/monitoring/dashboard"
TOKEN = "correct-horse-battery-staple-7Q"
BEARER = {"authorization": f"Bearer {TOKEN}"}
TYPES = Path(__file__).parents[1] / "frontend" / "src" / "types.ts"


def until(condition: Callable[[], object], seconds: float = 30, what: str = "the condition") -> None:
    """Wait for ``condition``; AssertionError when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


def ask(method: str, url: str, **options: Any) -> httpx.Response:
    """One request. Nothing here is TLS, and to load the certificates for it takes 25 ms each time."""
    return httpx.request(method, url, **{"verify": False, "timeout": 10, **options})


@contextmanager
def served(app: Any, port: int | None = None, **options: Any) -> Iterator[str]:
    """``app`` on a real uvicorn in a thread; yields its address."""
    port = free_port() if port is None else port
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=port, log_level="critical", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server's start")
        assert thread.is_alive(), "the server did not start"
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server does not end"


@contextmanager
def opened(interval: float = 0.05, **options: Any) -> Iterator[tuple[str, ResourceMonitor]]:
    """A dashboard without more; yields the dashboard's address."""
    app = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=interval, service="shop"), **options)
    with served(app) as address:
        yield address + PATH, monitor


@contextmanager
def stream(url: str, headers: Any = None) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a stream as they come, each with its id."""
    headers = BEARER if headers is None else headers
    with httpx.stream("GET", verify=False, url=f"{url}/api/stream", headers=headers, timeout=15) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"

        def events() -> Iterator[dict[str, Any]]:
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    event = json.loads(fields["data"])
                    assert fields["event"] == "tick"
                    assert fields["id"] == str(event["seq"])
                    yield event
                    fields = {}

        yield events()


# -- the contract: frontend/src/types.ts, as far as that file uses TypeScript --------------------------

_TOKEN = re.compile(r'"[^"]*"|[A-Za-z_]\w*|\[\]|[{}<>()|,;:?]')


def mismatches(value: Any, type_name: str) -> list[str]:
    """Where ``value`` is not what types.ts says of ``type_name``, one line each. Fields that it does not know count."""
    return list(_check(value, _types()[type_name], type_name))


@cache
def _types() -> dict[str, Any]:
    text = re.sub(r"//.*", "", TYPES.read_text())
    found: dict[str, Any] = {}
    for name, parent, body in re.findall(
        r"^export interface (\w+)(?: extends (\w+))? (\{.*?\})$", text, re.M | re.S
    ):
        fields = found[parent][1] if parent else {}
        found[name] = ("object", {**fields, **_Parser(body).type()[1]})
    for name, body in re.findall(r"^export type (\w+) = (.*);$", text, re.M):
        found[name] = _Parser(body).type()
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)

    def _take(self, wanted: str) -> bool:
        if self._tokens and self._tokens[0] == wanted:
            del self._tokens[0]
            return True
        return False

    def type(self) -> Any:
        self._take("|")
        options = [self._single()]
        while self._take("|"):
            options.append(self._single())
        return options[0] if len(options) == 1 else ("union", options)

    def _single(self) -> Any:
        token = self._tokens.pop(0)
        made: Any
        if token == "(":
            made = self.type()
            assert self._take(")")
        elif token == "{":
            fields = {}
            while not self._take("}"):
                name = self._tokens.pop(0)
                optional = self._take("?")
                assert self._take(":"), name
                fields[name] = (self.type(), optional)
                self._take(";")
            made = ("object", fields)
        elif token == "Record":
            assert self._take("<")
            assert self._take("string")
            assert self._take(",")
            made = ("record", self.type())
            assert self._take(">")
        else:
            made = ("name", token)
        while self._take("[]"):
            made = ("list", made)
        return made


def _check(value: Any, kind: Any, where: str) -> Iterator[str]:
    sort, inner = kind
    if sort == "union":
        tries = [list(_check(value, option, where)) for option in inner]
        if all(tries):
            yield from min(tries, key=len)
    elif sort == "list":
        if not isinstance(value, list):
            yield f"{where}: {value!r:.60} is no list"
        else:
            for n, one in enumerate(value):
                yield from _check(one, inner, f"{where}[{n}]")
    elif sort in ("record", "object") and not isinstance(value, dict):
        yield f"{where}: {value!r:.60} is no object"
    elif sort == "record":
        for key, one in value.items():
            yield from _check(one, inner, f"{where}[{key}]")
    elif sort == "object":
        for name, (of, optional) in inner.items():
            if name in value:
                yield from _check(value[name], of, f"{where}.{name}")
            elif not optional:
                yield f"{where}.{name} is missing"
        yield from (f"{where}.{name} is not known to the page" for name in value if name not in inner)
    elif inner in _types():
        yield from _check(value, _types()[inner], where)
    elif not _is(value, inner):
        yield f"{where}: {value!r:.60} is no {inner}"


def _is(value: Any, name: str) -> bool:
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name.startswith('"'):
        return bool(value == name[1:-1])
    return {"string": isinstance(value, str), "boolean": isinstance(value, bool), "null": value is None}[name]
