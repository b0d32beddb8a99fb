"""Do processes that share a directory say the same, whatever becomes of them and of their files?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="record locks are POSIX")

PROGRAM = """
import json, logging, os, sys, time
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from uno.core.monitoring.integration import setup_prometheus_exporter
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor
monitor = ResourceMonitor(interval=3600, workers=os.environ["GROUP"])
monitor.manager.register(object(), id="shop")
orders = monitor.add_metric("shop", Counter("orders", labels=["kind"]))
paid = monitor.add_metric("shop", Counter("paid"))
inc = paid.inc  # kept from before it knows of other workers
wait = monitor.add_metric("shop", Histogram("wait", buckets=[1, 2]))
size = monitor.add_metric("shop", Histogram("size", buckets=[10], native=True))
depth = monitor.add_metric("shop", Gauge("depth"))
worst = monitor.add_metric("shop", Gauge("worst", merge="max"))
least = monitor.add_metric("shop", Gauge("least", merge="min"))
each = monitor.add_metric("shop", Gauge("each", merge="worker"))
exporter = setup_prometheus_exporter(monitor)
monitor.start()
monitor.tick()
def scrape():
    lines = [line.rsplit(" ", 1) for line in exporter.render().decode().splitlines() if line[0] != "#"]
    plain = lambda name: name.replace('resource="shop",', "").replace('{resource="shop"}', "")
    return {plain(name): float(value) for name, value in lines}
for line in sys.stdin:
    try:
        answer = eval(line)
    except Exception as error:
        answer = repr(error)
    print(json.dumps(answer), flush=True)
monitor.stop()
"""


class Worker:
    """One worker of a group. Each is started as a program of its own: only the directory joins them."""

    def __init__(self, group: Path, program: str = PROGRAM, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "GROUP": str(group), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.said = ""

    def do(self, expression: str) -> object:
        import json

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    def scrape(self) -> dict[str, float]:
        found = self.do("scrape()")
        assert isinstance(found, dict), found
        return found

    def kill(self) -> None:
        self.process.kill()
        self.said = self.process.communicate()[1]

    def leave(self) -> None:
        self.said = self.process.communicate(timeout=30)[1]
        assert self.process.returncode == 0, self.said


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Call it to start a worker of the one group of this test; it answers once it has joined."""
    started: list[Worker] = []

    def start(**environment: str) -> Worker:
        worker = Worker(tmp_path, **environment)
        started.append(worker)
        assert worker.do("monitor.running") is True
        return worker

    yield start
    for worker in started:
        worker.kill()


def shards(group: Path) -> list[str]:
    return sorted(path.name for path in group.glob("uno-workers-*/*/*"))


def directory(group: Path) -> Path:
    return next(group.glob("uno-workers-*/given-*"))


def test_counters_histograms_and_gauges_of_all(team: Callable[..., Worker], tmp_path: Path) -> None:
    workers = [team() for _ in range(3)]
    for n, worker in enumerate(workers, 1):
        worker.do(f"orders.labels('a').inc({n})")
        worker.do(f"orders.labels(str({n})).inc()")
        worker.do("inc(0.1)")
        worker.do("[size.observe(x) for x in (1, 3, 1000)]")
        worker.do(f"[wait.observe(x) for x in (0.5, {n})]")
        worker.do(f"[g.set({n}) for g in (depth, worst, least, each)]")
    # counters are there at once, whoever is asked
    assert {worker.scrape()['orders{kind="a"}'] for worker in workers} == {6}
    for _ in range(2):
        for worker in workers:
            worker.do("monitor.tick()")
    found = [worker.scrape() for worker in workers]
    ours = re.compile(r"orders|paid|wait|depth|worst|least|each")
    seen = [{name: value for name, value in page.items() if ours.match(name)} for page in found]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0] == {
        'orders{kind="a"}': 6, 'orders{kind="1"}': 1, 'orders{kind="2"}': 1, 'orders{kind="3"}': 1,
        "paid": pytest.approx(0.3), "depth": 6, "worst": 3, "least": 1,
        'each{worker="0"}': 1, 'each{worker="1"}': 2, 'each{worker="2"}': 3,
        'wait_bucket{le="1.0"}': 4, 'wait_bucket{le="2.0"}': 5, 'wait_bucket{le="+Inf"}': 6,
        "wait_sum": 7.5, "wait_count": 6,
    }  # fmt: skip
    native = (
        "[[n.zero_count, n.positive] for n in [next(d for s, d in monitor.view.frame.histograms.items() "
        "if s.metric.name == 'size').native]]"
    )
    assert workers[0].do(native) == [[0, {"0": 3, "51": 3, "319": 3}]]
    assert shards(tmp_path) == ["0.shard", "1.shard", "2.shard"]
    workers.pop().kill()
    workers[0].do("monitor.tick()")
    assert workers[0].do(native) == [[0, {"0": 3, "51": 3, "319": 3}]]
    for worker in workers:
        worker.leave()
        assert worker.said == ""
    assert list(tmp_path.iterdir()) == []


def test_the_dead_keep_what_they_counted_and_lose_their_gauges(
    team: Callable[..., Worker], tmp_path: Path
) -> None:
    one, two = team(), team()
    one.do("depth.set(1)")
    two.do("[orders.labels('a').inc(0.1) for _ in range(1000)]")
    two.do("[wait.observe(0.1) for _ in range(10)]")
    two.do("depth.set(5)")
    two.do("monitor.tick()")
    one.do("monitor.tick()")
    before = one.scrape()
    assert before["depth"] == 6
    two.do("[inc() for _ in range(777)]")  # and dies before any tick
    two.kill()
    assert one.scrape()["paid"] == 777
    one.do("monitor.tick()")
    after = one.scrape()
    assert after["depth"] == 1
    assert after["paid"] == 777
    for name in ('orders{kind="a"}', "wait_sum", "wait_count", 'wait_bucket{le="1.0"}'):
        assert after[name] == before[name]  # to the last digit
    assert shards(tmp_path) == ["0.shard", "dead.shard"]
    for _ in range(5):  # many come and are killed
        other = team()
        other.do("[orders.labels('a').inc(0.1), inc()]")
        other.kill()
        one.do("monitor.tick()")
    assert shards(tmp_path) == ["0.shard", "dead.shard"]
    assert one.scrape()["paid"] == 782
    three = team()
    three.do("monitor.tick()")
    assert three.scrape()["paid"] == 782
    assert three.scrape()['orders{kind="a"}'] == one.scrape()['orders{kind="a"}']
    one.leave()
    assert three.scrape()["paid"] == 782


def test_one_who_leaves_hands_over(team: Callable[..., Worker], tmp_path: Path) -> None:
    one, two = team(), team()
    two.do("[inc(), wait.observe(3), orders.labels('b').inc(2)]")
    two.leave()
    assert shards(tmp_path) == ["0.shard", "dead.shard"]
    found = one.scrape()
    assert (found["paid"], found["wait_count"], found['orders{kind="b"}']) == (1, 1, 2)


#: Counts before every line of what a leaving worker does, and looks as the others do.
LEAVE = """
from uno.core.monitoring.series import SeriesStore
from uno.core.monitoring.workers import fold, member, merge
said, totals, times = [], [], {}
directory = os.dup(monitor.sharing._member._directory)
seen = merge.MergedStore(directory, ("none", -1), SeriesStore(), lambda *words: said.append(words))
def trace(frame, event, arg):
    if frame.f_code.co_filename not in (member.__file__, fold.__file__):
        return None
    at = frame.f_code, frame.f_lineno
    times[at] = times.get(at, 0) + 1
    if event == "line" and times[at] == 1:
        sys.settrace(None)
        inc()
        shown = seen.tick(1.0)
        totals.append(shown.values[seen.select("shop", "paid")[0].column])
        sys.settrace(trace)
    return trace
sys.settrace(trace)
monitor.stop()
sys.settrace(None)
"""


def test_no_total_falls_while_a_worker_leaves_that_goes_on_counting(team: Callable[..., Worker]) -> None:
    one, two = team(), team()
    one.do("inc()")
    two.do("inc()")
    two.do(f"exec({LEAVE!r})")
    totals, said = two.do("totals"), two.do("said")
    assert isinstance(totals, list)
    assert said == []
    assert len(totals) > 50
    assert totals == sorted(totals)
    assert totals[-1] > 10  # what it counted up to then is kept
    assert one.scrape()["paid"] == totals[-1]


def test_a_crash_while_the_dead_are_folded_neither_loses_nor_doubles(
    team: Callable[..., Worker], tmp_path: Path
) -> None:
    for step in ("rename", "unlink"):
        one, two, three = team(), team(), team()
        for worker in (one, two, three):
            worker.do("[inc() for _ in range(10)]")
            worker.do("monitor.tick()")
        total = one.scrape()["paid"]
        two.kill()
        # Killed just before the step: the new file is not there, or the old one is there still.
        three.do(
            f"setattr(os, {step!r}, lambda *a, real=os.{step}, **k: real(*a, **k) "
            f"if {step!r} == 'unlink' and a[0] == '.dead-new' else os.kill(os.getpid(), 9))"
        )
        assert three.process.stdin is not None
        three.process.stdin.write("monitor.tick()\n")
        three.process.stdin.flush()
        assert three.process.wait(30) == -signal.SIGKILL
        assert one.scrape()["paid"] == total
        one.do("monitor.tick()")
        assert one.scrape()["paid"] == total
        assert shards(tmp_path) == ["0.shard", "dead.shard"]
        one.leave()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(b"x" * 100), "it is no shard"),
        (lambda path: path.write_bytes(b""), "the header is cut off"),
        (lambda path: os.truncate(path, 4096), "shard"),
        (
            lambda path: path.write_bytes(
                path.read_bytes()[:4200] + b"\xff" * 300 + path.read_bytes()[4500:]
            ),
            "damaged",
        ),
    ],
)
def test_a_corrupt_shard_is_told_and_left_out(
    team: Callable[..., Worker], tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    one, two = team(), team()
    one.do("inc()")
    two.do("inc()")
    two.kill()
    damage(directory(tmp_path) / "1.shard")
    for _ in range(3):
        one.do("monitor.tick()")
    assert one.scrape()["paid"] in (1, 2)
    three = team()
    three.do("inc()")
    assert one.scrape()["paid"] == three.scrape()["paid"] >= 2
    one.leave()
    assert told in one.said


def test_a_corrupt_dead_shard_is_told_and_left_out(team: Callable[..., Worker], tmp_path: Path) -> None:
    one, two = team(), team()
    two.do("[inc() for _ in range(1234)]")
    two.kill()
    one.do("monitor.tick()")
    path = directory(tmp_path) / "dead.shard"
    whole = path.read_bytes()
    number = whole.index(__import__("struct").pack("d", 1234.0))
    path.write_bytes(whole[:number] + __import__("struct").pack("d", 9e9) + whole[number + 8 :])
    one.do("inc()")
    assert one.scrape()["paid"] == 1
    one.leave()
    assert "its numbers are damaged" in one.said


def opened(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def foreign(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 12_345, 12_345)


def test_directories_and_files_that_others_prepared_are_refused(tmp_path: Path) -> None:
    name = f"uno-workers-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    cases: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(elsewhere),
        "file": lambda path: path.write_text(""),
        "open": opened,
    }
    if os.getuid() == 0:
        cases["foreign"] = foreign
    for case, prepare in cases.items():
        group = tmp_path / case
        group.mkdir()
        prepare(group / name)
        worker = Worker(group)
        worker.do("inc()")
        worker.do("monitor.tick()")
        assert worker.scrape()["paid"] == 1
        worker.leave()
        assert "shows its own numbers only" in worker.said, case
        assert list(elsewhere.iterdir()) == []


def test_planted_shards_are_refused(team: Callable[..., Worker], tmp_path: Path) -> None:
    one = team()
    one.do("inc()")
    inside = directory(tmp_path)
    assert inside.stat().st_mode & 0o777 == 0o700
    assert inside.parent.stat().st_mode & 0o777 == 0o700
    assert (inside / "0.shard").stat().st_mode & 0o777 == 0o600
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (inside / "7.shard").symlink_to(secret)
    os.mkfifo(inside / "8.shard")
    (inside / "9.shard").mkdir()
    for _ in range(2):
        one.do("monitor.tick()")
    assert one.scrape()["paid"] == 1
    assert secret.read_text() == "secret"
    one.leave()
    for name in ("7.shard", "8.shard", "9.shard"):
        assert name in one.said


def test_a_full_disk_is_told_and_monitoring_goes_on(tmp_path: Path) -> None:
    program = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n" + PROGRAM
    worker = Worker(tmp_path, program)
    worker.do("inc()")
    worker.do("monitor.tick()")
    assert worker.scrape()["paid"] == 1
    worker.leave()
    assert "shows its own numbers only" in worker.said


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own of 512 KiB, or what the test's parameter says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = getattr(request, "param", "512k")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if (
        os.getuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("a file system of its own can be made by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("small_disk", ["96k"], indirect=True)
def test_a_disk_that_fills_up_keeps_what_is_new_to_the_worker_itself(small_disk: Path) -> None:
    one = Worker(small_disk)
    one.do("[orders.labels(str(n)).inc() for n in range(900)]")
    one.do("[inc(), wait.observe(0.5)]")
    one.do("monitor.tick()")
    found = one.scrape()
    assert (found["paid"], found["wait_count"], found['orders{kind="899"}']) == (1, 1, 1)
    two = Worker(small_disk)  # there is no room for another shard
    two.do("inc(5)")
    two.do("monitor.tick()")
    assert two.scrape()["paid"] == 5
    two.leave()
    assert "shows its own numbers only" in two.said
    one.leave()
    assert "cannot grow" in one.said


def test_the_dead_stay_as_they_are_while_the_disk_is_full(small_disk: Path) -> None:
    one, two = Worker(small_disk), Worker(small_disk)
    try:
        for worker in (one, two):
            worker.do("[inc(2), monitor.tick(), monitor.tick()] and None")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        two.kill()
        one.do("monitor.tick()")
        descriptors = one.do("len(os.listdir('/proc/self/fd'))")
        for _ in range(5):
            one.do("monitor.tick()")
        assert one.do("len(os.listdir('/proc/self/fd'))") == descriptors
        assert one.scrape()["paid"] == 4
        filler.unlink()
        one.do("monitor.tick()")
        assert shards(small_disk) == ["0.shard", "dead.shard"]
        assert one.scrape()["paid"] == 4
        one.leave()
        assert "dead workers' shards cannot be folded: No space left on device" in one.said
    finally:
        for worker in (one, two):
            worker.kill()


def test_who_finds_the_others_busy_shows_nothing_until_it_has_joined(
    team: Callable[..., Worker], tmp_path: Path
) -> None:
    one = team()
    one.do("inc(5)")
    lock = os.open(next(tmp_path.glob("uno-workers-*")) / "lock", os.O_RDWR)
    fcntl.lockf(lock, fcntl.LOCK_EX)
    two = team()
    two.do("inc(2)")
    assert "paid" not in two.scrape()  # 2 would be a fall
    os.close(lock)
    two.do("monitor.tick()")
    assert two.scrape()["paid"] == one.scrape()["paid"] == 7


def test_who_has_no_file_descriptors_left_shows_nothing_rather_than_less(
    team: Callable[..., Worker], tmp_path: Path
) -> None:
    one, two = team(), team()
    two.do("inc(5)")
    two.kill()
    one.do("monitor.tick()")
    three, four = team(), team()
    for worker in (three, four):
        worker.do("inc(2)")
    limit = "[__import__('resource').setrlimit(7, ({}, 4096))] and None"
    one.do(limit.format(3))  # neither three's file can be opened nor four's
    four.kill()
    assert "paid" not in one.scrape()  # 5 would be a fall
    one.do("monitor.tick()")
    assert "paid" not in one.scrape()
    one.do(limit.format(4096))
    one.do("monitor.tick()")
    assert one.scrape()["paid"] == three.scrape()["paid"] == 9
    assert shards(tmp_path) == ["0.shard", "1.shard", "dead.shard"]
    one.leave()
    assert "cannot be read: Too many open files" in one.said


def test_a_shard_that_is_taken_away_is_made_anew(team: Callable[..., Worker], tmp_path: Path) -> None:
    one, two = team(), team()
    one.do("inc()")
    (directory(tmp_path) / "0.shard").unlink()
    one.do("monitor.tick()")
    one.do("inc(2)")
    one.do("monitor.tick()")
    two.do("monitor.tick()")
    assert two.scrape()["paid"] == one.scrape()["paid"] == 2
    one.leave()
    assert "taken away" in one.said


def test_a_series_that_all_workers_dropped_is_shown_no_more(team: Callable[..., Worker]) -> None:
    one, two = team(), team()
    for worker in (one, two):
        worker.do(
            "[monitor.manager.register(object(), id='x'), monitor.add_metric('x', Counter('gone')).inc()][1]"
        )
        worker.do("monitor.tick()")
    assert one.scrape()['gone{resource="x"}'] == 2
    one.do("print(end=str(monitor.manager.unregister('x'))[:0])")
    one.do("monitor.tick()")
    assert one.scrape()['gone{resource="x"}'] == 2  # the other one has it still
    two.do("print(end=str(monitor.manager.unregister('x'))[:0])")
    two.do("monitor.tick()")
    one.do("monitor.tick()")
    assert 'gone{resource="x"}' not in one.scrape()
    one.do("[monitor.manager.register(object(), id='x'), monitor.add_metric('x', Counter('gone')).inc()][1]")
    assert one.scrape()['gone{resource="x"}'] == 3  # a total never falls


def test_removed_labels_are_shown_as_long_as_a_worker_has_them(team: Callable[..., Worker]) -> None:
    one, two = team(), team()
    for worker in (one, two):
        worker.do("[orders.labels('a').inc(2), orders.labels('b').inc()][0]")
        worker.do("monitor.tick()")
    one.do("orders.remove('a')")
    one.do("monitor.tick()")
    assert one.scrape()['orders{kind="a"}'] == 4  # the other one has it still, and a total never falls
    two.do("orders.clear()")
    two.do("monitor.tick()")
    one.do("monitor.tick()")
    for worker in (one, two):
        page = worker.scrape()
        assert 'orders{kind="a"}' not in page
        assert page['orders{kind="b"}'] == 2
    one.do("orders.labels('a').inc()")
    two.do("orders.labels('b').inc()")
    for worker in (one, two, one):
        worker.do("monitor.tick()")
    page = one.scrape()
    assert (page['orders{kind="a"}'], page['orders{kind="b"}']) == (5, 3)


def test_reports_and_history_are_of_all(team: Callable[..., Worker]) -> None:
    one, two = team(), team()
    two.do("[wait.observe(0.25) for _ in range(30)]")
    one.do("wait.observe(1.5)")
    for _ in range(3):
        two.do("monitor.tick()")
        one.do("monitor.tick()")
    rows = one.do(
        "[[r.metric, r.count, r.max] for r in monitor.generate_report(resource_id='shop').rows if r.metric == 'wait']"
    )
    assert rows == [["wait", 31, 1.5]]


TASKS = PROGRAM.replace(
    "exporter =",
    """
from celery import Celery
app = Celery("shop", broker=os.environ["BROKER"], set_as_current=False)
app.conf.task_default_queue = os.environ["QUEUE"]
monitor.manager.register(app, id="tasks")
exporter =""",
)


@pytest.mark.server
@pytest.mark.parametrize("broker", ["redis_with_password", "rabbitmq"])
def test_what_two_workers_read_of_one_server_is_not_added_up(
    tmp_path: Path, broker: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(broker).url
    workers = [Worker(tmp_path, TASKS, BROKER=url, QUEUE=f"orders-{os.getpid()}") for _ in range(2)]
    try:
        for n, worker in enumerate(workers, 1):
            worker.do(f"[str(app.send_task('work')) for _ in range({n})]")
        waiting = 'task_queue_size{resource="tasks",state="waiting"}'
        enqueued = 'task_queue_enqueued_total{resource="tasks"}'
        found: dict[str, float] = {}
        end = time.monotonic() + 60
        while (found.get(waiting), found.get(enqueued)) != (3, 3):
            assert time.monotonic() < end, found
            for worker in workers:
                worker.do("monitor.tick()")
            found = workers[0].scrape()
    finally:
        for worker in workers:
            worker.kill()


def test_a_total_of_the_machine_is_not_added_up_and_never_falls(
    team: Callable[..., Worker], tmp_path: Path
) -> None:
    """Counters that all workers read from one place: the disks', the container's."""
    one, two = team(), team()
    shown = "system_disk_io_bytes_total"
    for worker in (one, two, one):
        worker.do("monitor.tick()")
    pages = [one.scrape(), two.scrape()]
    lines = [name for name in pages[0] if name.startswith((shown, "system_pressure", "container_cpu"))]
    if not lines:
        pytest.skip("this system tells nothing of its disks")
    own = one.do("[r.stats['total'] for r in monitor.series('host', 'system.disk.io')]")
    assert isinstance(own, list)
    disks = [value for name, value in pages[0].items() if name.startswith(shown)]
    assert sorted(disks) == sorted(own)
    two.kill()
    one.do("monitor.tick()")
    after = one.scrape()
    assert all(after[name] >= pages[0][name] for name in lines)


def test_a_metric_of_yours_that_is_fed_becomes_one_as_what_feeds_it(team: Callable[..., Worker]) -> None:
    one, two = team(), team()
    for n, worker in enumerate((one, two), 1):
        worker.do("exec('from concurrent.futures import ThreadPoolExecutor\\npool = ThreadPoolExecutor(4)')")
        worker.do("[monitor.manager.register(pool, id='pool', type='thread_pool')] and None")
        worker.do("[monitor.add_metric('pool', Gauge('utilization', labels=['pool_id']))] and None")
        worker.do(f"[pool.submit(time.sleep, 60) for _ in range({n})] and None")
    for worker in (one, two, one):
        worker.do("monitor.tick()")
    assert one.scrape()['utilization{resource="pool",pool_id="pool"}'] == 0.5


def test_workers_stand_alone_when_told_so(tmp_path: Path) -> None:
    environment = {**os.environ, "UNO_WORKERS": "off", "XDG_RUNTIME_DIR": str(tmp_path)}
    code = """
        import multiprocessing, os
        from uno.core.monitoring.resources import Counter, ResourceMonitor
        monitor = ResourceMonitor(interval=0.05)
        monitor.manager.register(object(), id="shop")
        paid = monitor.add_metric("shop", Counter("paid"))
        def work():
            paid.inc()
            monitor.tick()
            assert monitor.read("shop", "paid", stat="total") == 6, monitor.read("shop", "paid", stat="total")
        if __name__ == "__main__":
            monitor.start()
            paid.inc(5)
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start(); child.join()
            assert child.exitcode == 0
            monitor.tick()
            assert monitor.view is monitor.store
            monitor.stop()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [True, "", 7])
def test_what_workers_cannot_be(bad: object) -> None:
    from uno.core.monitoring.resources import ResourceMonitor

    with pytest.raises(TypeError, match="workers="):
        ResourceMonitor(workers=bad)  # type: ignore[arg-type]


def test_a_directory_that_is_not_there_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from uno.core.monitoring.resources import ResourceMonitor

    with ResourceMonitor(workers=tmp_path / "run" / "shop"):
        assert (tmp_path / "run" / "shop").is_dir()
    assert caplog.records == []
    (tmp_path / "file").write_text("")
    with ResourceMonitor(workers=tmp_path / "file"):
        pass
    assert f"{tmp_path / 'file'}: " in caplog.text
