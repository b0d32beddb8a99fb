"""Does the command line answer, and does its exit code tell?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from uno import __version__
from uno.cli import main


@pytest.fixture
def health() -> Iterator[tuple[str, dict[str, object]]]:
    """A health endpoint that answers what the test puts into it."""
    said: dict[str, object] = {"code": 200, "body": b'{"status": "pass"}'}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(str(said["code"])))
            self.end_headers()
            body = said["body"]
            assert isinstance(body, bytes)
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/health", said
    server.shutdown()
    thread.join()
    server.server_close()


def test_types_lists_what_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["types"]) == 0
    assert "concurrent.futures.thread.ThreadPoolExecutor" in capsys.readouterr().out
    assert main(["types", "--json"]) == 0
    assert {"thread_pool"} <= {row["type"] for row in json.loads(capsys.readouterr().out)}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "uno.cli", "types"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_check_tells_by_its_exit_code(
    health: tuple[str, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, said = health
    assert main(["check", url]) == 0
    said["body"] = (
        b'{"status": "warn", "checks": {"db:database": [{"status": "warn", "output": "saturated"}]}}'
    )
    assert main(["check", url]) == 0
    assert "warn  db:database  saturated" in capsys.readouterr().out
    said.update(code=503, body=b'{"status": "fail"}')
    assert main(["check", url]) == 1
    said.update(code=200, body=b"<html>")
    assert main(["check", url]) == 2
    assert "no health endpoint" in capsys.readouterr().err


def test_check_without_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "http://127.0.0.1:9/health"]) == 2
    assert "no answer" in capsys.readouterr().err
    for odd in ("file:///etc/passwd", "http://127.0.0.1:9/a b", "http://[::1", "http://", "x"):
        assert main(["check", odd]) == 2
        assert "no http or https address" in capsys.readouterr().err
    assert main(["check", "http://me:hunter2@127.0.0.1:9/"]) == 2
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    ['{"status": "pass", "checks": [1]}', '{"status": "pass", "checks": {"a": [5]}}', '{"status": 5}', "[1]"],
)
def test_check_of_something_else(
    body: str, health: tuple[str, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, said = health
    said["body"] = body.encode()
    assert main(["check", f"{url}?token=hunter2"]) == 2
    told = capsys.readouterr()
    assert told.err == f"uno check: {url} is no health endpoint of uno\n"
    assert told.out == ""


def test_check_shows_nothing_that_steers_a_terminal(
    health: tuple[str, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, said = health
    said["body"] = (
        b'{"status": "fail", "checks": {"a": {"status": "fail", "output": "\\u001b[31mred\\nline"}}}'
    )
    assert main(["check", f"{url}?token=hunter2"]) == 1
    assert capsys.readouterr().out == f"fail: {url}\n  fail  a  \ufffd[31mred\ufffdline\n"


def test_check_waits_no_longer_than_it_was_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Each byte comes in time, the answer never ends."""
    over = threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(b" ")

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Trickle)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        assert main(["check", "--timeout", "0.3", f"http://127.0.0.1:{server.server_port}/health"]) == 2
    finally:
        over.set()
        thread.join()
        server.server_close()
    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_a_timeout_that_cannot_be(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", "http://127.0.0.1:9/", "--timeout", seconds])
    assert end.value.code == 2
    assert "--timeout" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "uno", "types"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "uno: No space left on device\n"


def test_a_terminal_without_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "from uno.cli import main; main(['types']); print('\\u2603')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\\u2603\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_a_new_type_works_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    assert main(["new-type", "mail_box", "--path", str(package)]) == 0
    assert "wrote" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    before = (package / "mail_box.py").read_text()
    (package / "test_mail_box.py").unlink()
    assert main(["new-type", "mail_box", "--path", str(package)]) == 2
    assert "mail_box.py is there already; nothing was written" in capsys.readouterr().err
    assert (package / "mail_box.py").read_text() == before
    assert not (package / "test_mail_box.py").exists()


@pytest.mark.parametrize("name", ["Mail", "1a", "a-b", "class", "a__b", "../a", "", "json", "x" * 41])
def test_a_new_type_needs_a_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-type", name, "--path", str(tmp_path)]) == 2
    assert "uno new-type: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
