"""Does the monitor start, stop, fork and keep time without leaving anything behind?"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - to be hooked
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial

import psutil
import pytest

from tests.servers import free_port
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import ResourceManager
from uno.testing import hooked


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def run(code: str, timeout: float = 60.0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_start_and_stop_may_be_repeated_from_any_thread() -> None:
    monitor = ResourceMonitor(interval=0.05)
    threads = [threading.Thread(target=monitor.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [t.name for t in threading.enumerate()].count("uno-monitor") == 1
    threads = [threading.Thread(target=monitor.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not monitor.running
    monitor.stop()


def test_a_tick_that_outlives_stop_puts_no_hook_back() -> None:
    monitor = ResourceMonitor(interval=0.05)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread() is by_hand:
            held.set()
            release.wait(30)

    by_hand = threading.Thread(target=monitor.tick)
    monitor.subscribe(hold)
    monitor.start()
    assert hooked("concurrent.futures.thread") != []
    clock = next(thread for thread in threading.enumerate() if thread.name == "uno-monitor")
    by_hand.start()
    assert held.wait(10)
    time.sleep(0.3)  # the clock's own tick has begun and waits for the one by hand
    monitor.stop()
    release.set()
    by_hand.join()
    clock.join(10)
    assert not clock.is_alive()
    assert hooked("concurrent.futures.thread") == []


def test_five_hundred_cycles_leave_nothing() -> None:
    me = psutil.Process()
    monitor = ResourceMonitor(interval=0.01)
    monitor.manager.register(None, id="custom", read=lambda: 1.0)
    with monitor:
        until(lambda: monitor.read("custom", "value") == 1.0)
    gc.collect()
    threads, fds = threading.active_count(), me.num_fds()
    for _ in range(500):
        with monitor:
            pass
    until(lambda: threading.active_count() <= threads)
    gc.collect()
    assert me.num_fds() <= fds

    async def in_a_loop() -> int:
        for _ in range(50):
            monitor.start()
            await asyncio.sleep(0)
            monitor.stop()
        return len(asyncio.all_tasks())

    assert asyncio.run(in_a_loop()) == 1


@pytest.mark.parametrize("shared", [True, False], ids=["one manager", "a manager each"])
def test_new_monitors_leave_nothing(shared: bool) -> None:
    def there() -> tuple[int, int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.callbacks)

    def run(manager: ResourceManager) -> None:
        with ResourceMonitor(manager, interval=0.01) as monitor:
            monitor.manager.register(object(), id=f"busy-{id(monitor)}", read=slow)
            until(lambda: monitor.store.frame is not None)

    def slow() -> float:
        time.sleep(0.02)
        return 1.0

    run(ResourceManager())  # what the process opens once
    manager = ResourceManager() if shared else None
    before = there()
    for _ in range(20):
        run(manager or ResourceManager())
    until(lambda: all(now <= then for now, then in zip(there(), before, strict=True)), 5)


def test_a_monitor_that_stopped_holds_no_descriptor_and_goes_on_after_a_start() -> None:
    before = len(os.listdir("/proc/self/fd")), len(gc.callbacks)
    monitor = ResourceMonitor(ResourceManager(), interval=0.01)

    def count() -> float | None:
        return monitor.read("process", "cpython.gc.pauses", stat="count")

    def more(pauses: float) -> bool:
        return (count() or 0) > pauses

    for _ in range(2):
        with monitor:
            until(lambda: (monitor.read("process", "process.memory.usage") or 0) > 0)
            pauses = count() or 0
            gc.collect()
            until(partial(more, pauses))
        assert len(os.listdir("/proc/self/fd")) <= before[0] + 1  # numpy and other modules may keep one
        assert len(gc.callbacks) == before[1]


def test_a_blocked_application_loop_costs_no_tick() -> None:
    monitor = ResourceMonitor(interval=0.05, collect_timeout=0.02)

    async def read() -> float:
        return 1.0

    async def application() -> tuple[int, bool]:
        monitor.manager.register(None, id="async-one", read=read)
        with monitor:
            while monitor.store.frame is None or monitor.read("async-one", "value") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            start = monitor.store.frame.seq
            time.sleep(2)  # noqa: ASYNC251 - the fault
            ticked = monitor.store.frame.seq - start
            blocked = monitor.read("async-one", "value") is None
            deadline = time.monotonic() + 10
            while monitor.read("async-one", "value") is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            return ticked, blocked

    ticked, blocked = asyncio.run(application())
    assert 36 <= ticked <= 42, "40 are due"
    assert blocked, "what could not be read is a gap"


def test_a_program_that_never_stops_its_monitor_ends_at_once() -> None:
    start = time.monotonic()
    out = run(
        """
        import threading
        from uno.core.monitoring.resources import ResourceMonitor
        monitor = ResourceMonitor()
        monitor.manager.register(None, id="hung", read=threading.Event().wait)
        monitor.start()
        print("end")
        """
    )
    assert out == "end\n"
    assert time.monotonic() - start < 10


def test_fork_with_a_running_monitor() -> None:
    out = run(
        """
        import os, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from uno.core.monitoring.resources import ResourceMonitor, Histogram, Counter
        monitor = ResourceMonitor(interval=0.02)
        monitor.manager.register(None, id="x", read=lambda: float(os.getpid()))
        h = monitor.add_metric("x", Histogram("h"))
        c = monitor.add_metric("x", Counter("c"))
        monitor.start()
        good = 0
        for _ in range(20):
            h.observe(1.0); c.inc()
            pid = os.fork()
            if pid == 0:
                deadline = time.monotonic() + 5
                h.observe(1.0); c.inc()
                while time.monotonic() < deadline:
                    if monitor.running and monitor.read("x", "value") == os.getpid():
                        monitor.stop()
                        os._exit(0)
                    time.sleep(0.005)
                os._exit(1)
            _, status = os.waitpid(pid, 0)
            good += status == 0
        print(good, monitor.running)
        monitor.stop()
        """
    )
    assert out == "20 True\n"


def test_multiprocessing_fork() -> None:
    out = run(
        """
        import multiprocessing as mp, os, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from uno.core.monitoring.resources import ResourceMonitor
        monitor = ResourceMonitor(interval=0.02)
        monitor.manager.register(None, id="x", read=lambda: float(os.getpid()))

        def work(_):
            deadline = time.monotonic() + 5
            while monitor.read("x", "value") != os.getpid():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return os.getpid()

        monitor.start()
        with mp.get_context("fork").Pool(2) as pool:
            print(len(set(pool.map(work, range(8), 1))) >= 1)
        monitor.stop()
        """
    )
    assert out == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn needs fork")
def test_gunicorn_preload(tmp_path: object) -> None:
    import urllib.request

    unused_port = free_port()
    code = textwrap.dedent(
        """
        from fastapi import FastAPI
        from uno.core.monitoring.resources import ResourceMonitor
        from uno.core.monitoring.integration import setup_monitoring
        monitor = ResourceMonitor(interval=0.05)
        monitor.manager.register(None, id="x", read=lambda: 1.0)
        monitor.start()                       # in the master, before the fork
        app = FastAPI()
        setup_monitoring(app, monitor, enable_dashboard=False)

        @app.get("/seq")
        def seq() -> dict:
            return {"seq": monitor.store.frame.seq if monitor.store.frame else 0, "running": monitor.running}
        """
    )
    path = os.path.join(str(tmp_path), "preloaded.py")
    with open(path, "w") as file:
        file.write(code)
    server = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-k", "uvicorn.workers.UvicornWorker",
            "-b", f"127.0.0.1:{unused_port}", "--chdir", str(tmp_path), "preloaded:app",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:

        def seq() -> int:
            import json

            with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/seq", timeout=5) as answer:
                found = json.loads(answer.read())
            assert found["running"]
            return int(found["seq"])

        def answers() -> bool:
            try:
                return seq() >= 0
            except OSError:
                return False

        until(answers)
        first = seq()
        until(lambda: seq() > first + 5)
    finally:
        server.terminate()
        server.communicate(timeout=10)


def test_a_jump_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = ResourceMonitor(interval=0.05)
    monitor.manager.register(None, id="x", read=lambda: 1.0)
    monitor.tick()
    first = monitor.store.frame
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    monitor.tick()
    second = monitor.store.frame
    assert first is not None
    assert second is not None
    assert 0 < second.time - first.time < 5
    assert abs(monitor.clock.wall(second.time) - time.time()) < 5
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    monitor.tick()
    assert monitor.store.frame is not None
    assert 0 < monitor.store.frame.time - second.time < 5
    monitor.stop()
