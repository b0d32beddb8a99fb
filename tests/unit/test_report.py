"""The report: of which time, what it says, and what lands in files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import tempfile
import time
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest

from uno.core.monitoring.clock import Clock
from uno.core.monitoring.resources import (
    Counter,
    Gauge,
    Histogram,
    Report,
    ResourceMonitor,
    Threshold,
    UnknownResourceTypeError,
)
from uno.core.resources import ResourceManager
from uno.core.resources.errors import UnknownResourceError

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC).timestamp()
MINUTE = timedelta(minutes=1)


class TestClock(Clock):
    """A clock that is set; ``ahead`` is by how much the wall clock left its course."""

    __test__ = False

    def __init__(self) -> None:
        self.time = NOON
        self.ahead = 0.0

    def now(self) -> float:
        return self.time

    def drift(self) -> float:
        return self.ahead


class World:
    """A monitor with two queues and a pool, on a clock that is set."""

    def __init__(self) -> None:
        self.manager = ResourceManager()
        self.monitor = ResourceMonitor(self.manager)
        self.clock = self.monitor.clock = TestClock()
        for id, type in (("main-db", "database"), ("orders", "queue"), ("mails", "queue")):
            self.manager.register(object(), id=id, type=type)
        self.usage = self.monitor.add_metric("main-db", Gauge("usage", unit="1", labels=["pool"]))
        self.wait = self.monitor.add_metric("main-db", Histogram("wait", unit="s"))
        self.sold = self.monitor.add_metric("orders", Counter("sold", unit="{item}"))
        self.bytes = self.monitor.add_metric("orders", Counter("sent", unit="By"))

    def tick(self, seconds: int = 1, usage: float = 0.5) -> None:
        for _ in range(seconds):
            self.clock.time += 1
            self.usage.labels("a").set(usage)
            self.wait.observe(0.02)
            self.sold.inc(2)
            self.bytes.inc(2**20)
            self.monitor.tick()

    def report(self, *args, **kwargs) -> Report:
        return self.monitor.generate_report(*args, **kwargs)

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.wall(self.clock.now())).astimezone()


@pytest.fixture
def world():
    world = World()
    yield world
    world.monitor.stop()


@pytest.fixture
def berlin(monkeypatch):
    """Local time is that of Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def row(report: Report, metric: str, resource: str | None = None):
    (found,) = (r for r in report.rows if r.metric == metric and resource in (None, r.resource))
    return found


# -- of which time -------------------------------------------------------------------------------------


def test_without_times_it_is_the_last_hour(world) -> None:
    report = world.report()
    assert (report.start, report.end) == (world.now - timedelta(hours=1), world.now)


def test_with_one_time_the_other_follows(world) -> None:
    now = world.now
    report = world.report(start_time=now - 5 * MINUTE)
    assert (report.start, report.end) == (now - 5 * MINUTE, now)
    report = world.report(end_time=now - 5 * MINUTE)
    assert (report.start, report.end) == (now - 65 * MINUTE, now - 5 * MINUTE)


def test_a_time_without_a_zone_is_local(world, berlin) -> None:
    report = world.report(start_time=datetime(2026, 7, 1, 13, 0), end_time=datetime(2026, 7, 1, 13, 30))
    assert report.start == datetime(2026, 7, 1, 11, 0, tzinfo=UTC)
    assert report.start.utcoffset() == timedelta(hours=2)
    assert "2026-07-01 13:00:00 to 13:30:00 +0200 (30 min)" in str(report)


def test_an_hour_is_an_hour_when_the_clocks_are_put_back(world, berlin) -> None:
    world.clock.time = datetime(2026, 10, 25, 1, 30, tzinfo=UTC).timestamp()  # the second half past two
    report = world.report()
    assert (report.end - report.start) == timedelta(hours=1)
    assert [t.utcoffset() for t in (report.start, report.end)] == [timedelta(hours=2), timedelta(hours=1)]
    assert "Report 2026-10-25 02:30:00 +0200 to 02:30:00 +0100 (1 h)" in str(report)


def test_an_hour_is_an_hour_when_the_clocks_are_put_forward(world, berlin) -> None:
    world.clock.time = datetime(2027, 3, 28, 1, 30, tzinfo=UTC).timestamp()
    assert "Report 2027-03-28 01:30:00 +0100 to 03:30:00 +0200 (1 h)" in str(world.report())


def test_a_time_with_a_zone_is_shown_in_the_local_one(world, berlin) -> None:
    tokyo = timezone(timedelta(hours=9))
    report = world.report(start_time=datetime(2026, 7, 1, 20, 0, tzinfo=tokyo))
    assert report.start == datetime(2026, 7, 1, 11, 0, tzinfo=UTC)
    assert report.start.utcoffset() == timedelta(hours=2)


def test_one_time_with_a_zone_and_one_without_is_a_clear_error(world) -> None:
    with pytest.raises(
        ValueError, match=r"2026-07-01T11:00:00 and end_time 2026-07-01T11:30:00\+00:00.*both"
    ):
        world.report(start_time=datetime(2026, 7, 1, 11), end_time=datetime(2026, 7, 1, 11, 30, tzinfo=UTC))


@pytest.mark.parametrize("back", [timedelta(0), -MINUTE])
def test_a_start_that_is_not_before_the_end_is_a_clear_error(world, back) -> None:
    end = world.now - 10 * MINUTE
    with pytest.raises(ValueError, match="is not before end_time") as told:
        world.report(start_time=end - back, end_time=end)
    assert end.isoformat() in str(told.value)
    assert (end - back).isoformat() in str(told.value)


def test_what_lies_ahead_is_left_out(world) -> None:
    now = world.now
    assert world.report(start_time=now - MINUTE, end_time=now + 60 * MINUTE).end == now
    with pytest.raises(ValueError, match="is not before now"):
        world.report(start_time=now + MINUTE)
    with pytest.raises(ValueError, match="in the future"):
        world.report(start_time=now + MINUTE, end_time=now + 2 * MINUTE)
    assert world.report(end_time=now + 5 * MINUTE).start == now - 60 * MINUTE


@pytest.mark.parametrize("wrong", ["2026-07-01", 1_700_000_000, datetime(2026, 7, 1).date()], ids=repr)
def test_a_time_is_a_datetime(world, wrong) -> None:
    with pytest.raises(TypeError, match="start_time is a datetime, not"):
        world.report(start_time=wrong)


def test_the_beginning_of_time_is_a_clear_error_or_a_long_time(world) -> None:
    try:
        world.report(start_time=datetime.min)
    except ValueError as error:
        assert "start_time 0001-01-01T00:00:00" in str(error)  # noqa: PT017 - depends on the zone


def test_times_follow_the_wall_clock_also_after_it_was_set(world) -> None:
    world.tick(60)
    world.clock.ahead = 7_200.0  # somebody put the clock two hours forward
    now = world.now
    report = world.report(start_time=now - MINUTE / 2)
    assert report.end == now
    assert row(report, "usage").count == pytest.approx(30, abs=1)


# -- of what -------------------------------------------------------------------------------------------


def test_all_resources_a_type_or_one(world) -> None:
    world.tick(3)
    assert {r.resource for r in world.report().rows} == {"main-db", "orders"}
    assert {r.resource for r in world.report("database").rows} == {"main-db"}
    assert {r.resource for r in world.report(resource_id="orders").rows} == {"orders"}
    assert world.report("database", resource_id="orders").rows == []


def test_an_unknown_type_or_resource_names_those_there_are(world) -> None:
    with pytest.raises(UnknownResourceTypeError, match="Did you mean 'database'"):
        world.report(resource_type="databse")
    with pytest.raises(UnknownResourceError, match="main-db"):
        world.report(resource_id="main-bd")


def test_a_known_type_without_resources_says_so(world) -> None:
    report = world.report("redis")
    assert report.verdict == "There are no resources of type redis."
    assert report.rows == []


# -- figures -------------------------------------------------------------------------------------------


def test_the_figures_of_each_kind(world) -> None:
    world.tick(10, usage=0.2)
    world.tick(10, usage=0.4)
    report = world.report()
    usage, wait, sold, sent = (row(report, name) for name in ("usage", "wait", "sold", "sent"))
    assert (usage.count, usage.min, usage.max, usage.last) == (20, 0.2, 0.4, 0.4)
    assert [usage.mean, usage.p50, usage.p95] == pytest.approx([0.3, 0.2, 0.4])
    assert (usage.labels, usage.unit, usage.title, usage.type) == ({"pool": "a"}, "1", "Usage", "database")
    assert wait.count == 20
    assert [wait.mean, wait.p99] == pytest.approx([0.02, 0.02], rel=0.01)
    assert [sold.mean, sold.p95, sold.last] == pytest.approx([2, 2, 2])
    assert (sold.unit, sent.unit, sold.exact) == ("{item}/s", "By/s", True)


def test_time_above_the_levels_and_the_present_level(world) -> None:
    world.monitor.set_threshold("main-db", "usage", Threshold(0.7, 0.9, alert_message="Pool is used up"))
    world.tick(10, usage=0.5)
    world.tick(20, usage=0.8)
    world.tick(5, usage=0.95)
    report = world.report()
    usage = row(report, "usage")
    assert (usage.warning, usage.critical, usage.below, usage.levels_of) == (0.7, 0.9, False, "value")
    assert (usage.beyond_warning, usage.beyond_critical, usage.level) == (25, 5, "critical")
    assert row(report, "wait").warning is None
    text = str(report)
    assert "above 70 % for 25 s, above 90 % for 5 s, critical now" in text
    assert report.verdict == "1 of 3 resources needs attention: main-db (Pool is used up)."
    (alert,) = report.alerts
    assert (alert.state, alert.level.label) == ("firing", "critical")
    assert "12:00:11 critical, still firing: main-db: Pool is used up" in re.sub(
        r"\d\d:00:11", "12:00:11", text
    )


def test_alerts_of_the_period_and_no_others(world) -> None:
    world.monitor.set_threshold("main-db", "usage", Threshold(0.7))
    world.tick(5, usage=0.8)
    world.tick(120, usage=0.5)
    begun = world.now
    world.tick(60, usage=0.5)
    assert len(world.report().alerts) == 1
    assert world.report(start_time=begun).alerts == []
    assert world.report(start_time=begun).verdict == "All 3 resources stayed within the levels."
    assert world.report(end_time=begun).verdict.startswith("1 of 3 resources needed attention: main-db (")
    assert world.report("queue").alerts == []
    (alert,) = world.report().alerts
    assert alert.state == "resolved"
    assert "warning, for 5 s: main-db" in str(world.report())


def test_a_level_below_is_told_as_such(world) -> None:
    world.monitor.set_threshold("main-db", "usage", Threshold(0.3, 0.1))
    world.tick(4, usage=0.2)
    assert row(world.report(), "usage").below
    assert "below 30 % for 4 s, warning now" in str(world.report())


def test_the_statistic_of_the_level_is_the_one_that_is_timed(world) -> None:
    world.monitor.set_threshold("main-db", "wait", Threshold(0.5, stat="rate"))
    world.tick(10)
    wait = row(world.report(), "wait")
    assert (wait.levels_of, wait.beyond_warning) == ("rate", 9)  # the first tick has no rate
    assert "above 0.5 for 9 s" in str(world.report())


def test_an_empty_period_has_rows_without_figures(world) -> None:
    world.tick(5)
    report = world.report(start_time=world.now - 600 * MINUTE, end_time=world.now - 500 * MINUTE)
    assert {r.count for r in report.rows} == {0}
    assert {r.p95 for r in report.rows} == {None}
    assert report.verdict == "Nothing is known of 3 resources in this time."
    assert any(note.startswith("No samples between ") for note in report.notes)
    assert "No samples between " in str(report)


def test_before_the_first_tick_it_says_that_nothing_is_known(world) -> None:
    report = world.report()
    assert report.notes[0].startswith("No samples between")
    assert str(report)


def test_where_the_history_begins_is_said(world) -> None:
    world.tick(5)
    (note,) = world.report().notes
    assert note == f"The history begins at {world.now - timedelta(seconds=4):%H:%M:%S}."
    assert world.report(start_time=world.now - timedelta(seconds=5)).notes == []


def test_what_comes_from_the_coarse_tier_is_marked(world) -> None:
    world.tick(300)
    world.clock.time += 7_000
    world.tick(700)
    report = world.report(start_time=world.now - timedelta(hours=3))
    assert not row(report, "usage").exact
    assert any("five-minute means" in note for note in report.notes)
    assert re.search(r"Usage \(a\) +~1,000 ", str(report))


# -- printed -------------------------------------------------------------------------------------------


def test_printed_it_is_a_table_with_peoples_units(world) -> None:
    world.tick(30)
    text = str(world.report())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[1] == "All 3 resources stayed within the levels."
    (usage,) = (line for line in lines if "Usage (a)" in line)
    (sent,) = (line for line in lines if "Sent" in line)
    (wait,) = (line for line in lines if "Wait" in line)
    assert re.split(r"  +", usage.strip()) == ["Usage (a)", "30", *["50 %"] * 7]
    assert re.split(r"  +", sent.strip())[2:] == ["1 MiB/s"] * 7
    assert re.split(r"  +", wait.strip())[3] == "20 ms"
    assert "orders (queue)" in lines
    assert len(repr(world.report())) < 200


def test_a_great_report_stays_readable(world) -> None:
    many = world.monitor.add_metric("mails", Gauge("depth", labels=["queue"]))
    for i in range(500):
        many.labels(f"{'very-' * 30}{i}").set(1e12 + i)
    world.tick(2)
    text = str(world.report())
    assert len(text.splitlines()) < 230
    assert max(map(len, text.splitlines())) <= 110
    assert "more series are not shown here" in text
    assert len(world.report().rows) > 500


HOSTILE = '<script>alert(1)</script>\x1b[31m=HYPERLINK("x")'


@pytest.fixture
def hostile(world):
    world.manager.register(object(), id="evil", name=HOSTILE, type="queue")
    metric = world.monitor.add_metric("evil", Gauge("g", labels=["l"], title=HOSTILE))
    metric.labels(HOSTILE).set(1)
    world.monitor.set_threshold("evil", "g", Threshold(0.5, alert_message=HOSTILE))
    world.tick(2)
    return world


def test_names_cannot_steer_a_terminal_or_a_page(hostile) -> None:
    report = hostile.report()
    assert "\x1b" not in str(report) + repr(report)

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def handle_starttag(self, tag, attrs) -> None:
            self.seen.add(tag)
            assert not attrs

    tags = Tags()
    page = report._repr_html_()
    tags.feed(page)
    assert tags.seen <= {"p", "table", "tr", "td", "th", "ul", "li"}
    assert "&lt;script&gt;" in page


# -- files ---------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_row_and_every_digit(world, tmp_path) -> None:
    world.tick(3, usage=1 / 3)
    report = world.report()
    path = report.export_csv(tmp_path / "report.csv")
    assert path == tmp_path / "report.csv"
    rows = read(path)
    assert len(rows) == len(report.rows)
    (usage,) = (r for r in rows if r["metric"] == "usage")
    assert float(usage["mean"]) == row(report, "usage").mean
    assert datetime.fromisoformat(usage["start"]) == report.start
    assert datetime.fromisoformat(usage["end"]) == report.end
    assert (usage["labels"], usage["unit"], usage["count"], usage["exact"]) == ("pool=a", "1", "3", "true")
    assert usage["warning"] == ""
    assert {"beyond_warning_seconds", "beyond_critical_seconds"} <= usage.keys()


def test_an_empty_period_is_empty_cells_never_zeros(world, tmp_path) -> None:
    world.tick(3)
    early = world.now - 600 * MINUTE
    rows = read(world.report(start_time=early, end_time=early + MINUTE).export_csv(tmp_path / "r.csv"))
    assert rows
    for found in rows:
        assert found["count"] == "0"
        assert {found[f] for f in ("min", "mean", "max", "p50", "p95", "p99", "last")} == {""}


@pytest.mark.parametrize("kind", [str, Path])
def test_missing_directories_are_made(world, tmp_path, kind) -> None:
    target = tmp_path / "path" / "to" / "report.csv"
    assert world.report().export_csv(kind(target)) == target
    assert target.exists()
    assert os.listdir(target.parent) == ["report.csv"]


@pytest.mark.parametrize("begin", list("=+-@\t\r\n"), ids=ascii)
def test_text_that_a_spreadsheet_would_run_is_defused(world, tmp_path, begin) -> None:
    name = f"{begin}1+1\"; 'x',\ny"
    world.manager.register(object(), id="evil", name=name, type="queue")
    world.monitor.add_metric("evil", Gauge("g")).set(-5)
    world.tick(1)
    report = world.report(resource_id="evil")
    (found,) = read(report.export_csv(tmp_path / "r.csv"))
    assert found["name"] == "'" + name
    assert found["min"] == "-5.0"  # a number stays one
    (found,) = read(report.export_csv(tmp_path / "r.csv", escape_formulas=False))
    assert found["name"] == name


def test_text_that_is_no_unicode_can_be_written(world, tmp_path) -> None:
    world.manager.register(object(), id="evil", name="caf\udce9 \N{SNOWMAN}", type="queue")
    world.monitor.add_metric("evil", Gauge("g")).set(1)
    world.tick(1)
    report = world.report(resource_id="evil")
    (found,) = read(report.export_csv(tmp_path / "r.csv"))
    assert found["name"] == "caf\\udce9 \N{SNOWMAN}"
    report.export_json(tmp_path / "r.json")


def test_a_failure_leaves_the_old_file_and_nothing_else(world, tmp_path) -> None:
    target = tmp_path / "report.csv"
    target.write_text("old")
    world.tick(1)
    report = world.report()
    report.rows.append(object())  # whatever goes wrong half-way
    with pytest.raises(TypeError):
        report.export_csv(target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.csv"]


def test_a_full_disk_is_the_error_that_it_is(world, tmp_path) -> None:
    resource = pytest.importorskip("resource")  # the limit on a file's size stands in for the disk's
    signal = pytest.importorskip("signal")
    many = world.monitor.add_metric("mails", Gauge("depth", labels=["queue"]))
    for i in range(200):
        many.labels(str(i)).set(1)
    world.tick(1)
    report = world.report()
    target = tmp_path / "report.csv"
    target.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as told:
            report.export_csv(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(target))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.csv"]


def test_a_directory_is_no_file(world, tmp_path) -> None:
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        world.report().export_csv(tmp_path)


def test_no_permission_is_the_error_that_it_is(world) -> None:
    report = world.report()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # whose parents everybody may enter
        target = Path(folder, "report.csv")
        report.export_csv(target)
        before = target.read_text()
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:  # which may write anywhere
            os.seteuid(65_534)
        try:
            with pytest.raises(PermissionError) as told:
                report.export_csv(target)
            assert str(target) in str(told.value)
            assert ".tmp" not in str(told.value)
            with pytest.raises(PermissionError):
                report.export_csv(Path(folder, "new", "report.csv"))
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o700)
        assert target.read_text() == before
        assert os.listdir(folder) == ["report.csv"]


def test_a_file_where_a_directory_is_needed_is_an_error(world, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("report.csv", "deep/er/report.csv"):
        with pytest.raises(NotADirectoryError, match="no directory") as told:
            world.report().export_csv(tmp_path / "file" / below)
        assert told.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("path", [None, 5, b"report.csv", ["report.csv"]])
def test_a_path_of_another_kind_is_said(world, path) -> None:
    with pytest.raises(TypeError, match=f"a str or a Path, not {type(path).__name__}"):
        world.report().export_csv(path)


def test_modes_and_links_are_kept(world, tmp_path) -> None:
    target, link = tmp_path / "real.csv", tmp_path / "link.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    world.report().export_csv(link)
    assert link.is_symlink()
    assert target.read_text().startswith("start,")
    assert target.stat().st_mode & 0o777 == 0o640
    fresh, plain = tmp_path / "fresh.csv", tmp_path / "plain"
    plain.write_text("")
    assert world.report().export_csv(fresh).stat().st_mode == plain.stat().st_mode


def test_a_pipe_is_written_to(world) -> None:
    out, into = os.pipe()
    with os.fdopen(out, encoding="utf-8") as end:
        world.report().export_csv(f"/dev/fd/{into}")
        os.close(into)
        assert next(csv.reader(io.StringIO(end.read())))[0] == "start"


def test_what_stands_in_an_open_file_stays(world, tmp_path) -> None:
    """As `program > file` with export_csv("/dev/stdout")."""
    with (tmp_path / "out").open("w+") as file:
        file.write("before\n")
        file.flush()
        world.report().export_csv(f"/dev/fd/{file.fileno()}")
        file.seek(0)
        assert file.read().startswith("before\nstart,")


def test_json_is_strict_and_whole(hostile, tmp_path) -> None:
    hostile.monitor.add_metric("mails", Gauge("endless")).set(float("inf"))
    hostile.tick(1)
    report = hostile.report()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(report.export_json(tmp_path / "a" / "r.json").read_text("utf-8"), parse_constant=refuse)
    assert told == report.to_dict()
    assert told["rows"] == report.to_dicts()
    assert told["verdict"] == report.verdict
    assert told["alerts"][0]["level"] == "warning"
    assert datetime.fromisoformat(told["alerts"][0]["fired_at"]).timestamp() == NOON + 1


# -- cost ----------------------------------------------------------------------------------------------


def test_a_thousand_series_for_an_hour_take_less_than_a_second(world) -> None:
    many = world.monitor.add_metric("mails", Gauge("depth", labels=["queue"]))
    cells = [many.labels(str(i)) for i in range(1_000)]
    for n in range(3_600):
        world.clock.time += 1
        for cell in cells[n % 10 :: 10]:
            cell.set(n)
        world.monitor.store.tick(world.clock.time)
        world.monitor.history.append(world.monitor.store.frame)
    began = time.process_time()
    report = world.report()
    took = time.process_time() - began
    assert len(report.rows) == 1_000
    assert max(r.count for r in report.rows) == 3_600
    assert took < 1
