"""Does a total ever fall, whatever happens at whichever moment while the dead are folded?

The program below folds the dead again and again: somebody looks just before every line that it runs, and then it is
killed before every one of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="record locks are POSIX")

PROGRAM = r"""
import os, shutil, signal, sys
import numpy
from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.series import SeriesStore
from uno.core.monitoring.workers import fold as folding
from uno.core.monitoring.workers import merge, shard

COUNTER, GAUGE = Spec("paid", "counter", "", "", ()), Spec("depth", "gauge", "", "", ())
HISTOGRAM, SHAPE = Spec("wait", "histogram", "", "", ()), folding.Shape((1.0,))
NUMBERS = (0.1, 0.2, 0.7)

def write(directory, name, amount):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=directory)
    writer = shard.ShardWriter(fd, shard.Header(name.encode().ljust(16), 1.0, 1, int(name[0])))
    for n, (spec, shape) in enumerate(((COUNTER, folding.Shape()), (GAUGE, folding.Shape()), (HISTOGRAM, SHAPE))):
        writer.define(folding.spec_record(n, spec, "sum", shape))
        width = 2 + 2 * shape.half if spec is HISTOGRAM else 2
        place = writer.allocate(width)
        numbers = (0.0, amount, 1.0, 2.0) if spec is HISTOGRAM else (amount,)
        place.view[place.at] = shard.KNOWN
        for at, number in enumerate(numbers, place.at + 1):
            place.view[at] = number
        writer.define(["s", n, "shop", [], place.slot, 1.0])
    writer.close()

class Group:
    def __init__(self, path):
        os.mkdir(path)
        self.fd = os.open(path, os.O_RDONLY)
        for n in range(3):
            write(self.fd, f"{n}.shard", NUMBERS[n])
        self.folder = self.reader()
        self.fold((0,))  # there is something to add to
        self.old = self.reader()
        self.look(self.old)

    def reader(self):
        said.clear()
        return merge.MergedStore(self.fd, ("none", -1), SeriesStore(), lambda what, message: said.append(message))

    def fold(self, which):
        self.folder.look()
        gone = [(f"{n}.shard", self.folder._shards[f"{n}.shard"].reader) for n in which]
        assert folding.fold(self.fd, self.folder.dead_reader(), gone) == []

    def look(self, store):
        frame = store.tick(1.0)
        found = {s.metric.name: frame.values[s.column] for s in store.all() if s.metric.kind != "histogram"}
        waits = [(d.count, d.sum, d.counts) for s, d in frame.histograms.items()]
        assert (found["paid"], waits, said) == (1.0, [(9, 1.0, (3, 6))], []), (found, waits, said)

    def files(self):
        return sorted(os.listdir(self.fd))

said = []
WRITES = {folding.fold, folding._write, shard.ShardWriter.__init__, shard.ShardWriter._grow, shard.ShardWriter.close}
CODES = {function.__code__ for function in WRITES}
outer = sys.argv[1]

def at_each_line(act):
    "Folds with act(n) before each line of what changes files, the first times that it runs; returns how many."
    lines, times = 0, {}
    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code not in CODES:
            return None
        at = frame.f_code, frame.f_lineno
        times[at] = times.get(at, 0) + 1
        if event == "line" and times[at] <= 2:
            lines += 1
            sys.settrace(None)  # what looks runs the same files
            act(lines)
            sys.settrace(trace)
        return trace
    sys.settrace(trace)
    try:
        group.fold((1, 2))
    finally:
        sys.settrace(None)
    return lines

group = Group(os.path.join(outer, "seen"))
def both(n):
    group.look(group.old)  # who has the files open since before
    if n % 5 == 0:
        joining = group.reader()
        group.look(joining)
        joining.close()
lines = at_each_line(both)
both(0)
assert group.files() == ["dead.shard"], group.files()
assert lines > 100

seen = set()
for step in range(1, lines + 1):
    path = os.path.join(outer, f"killed-{step}")
    group = Group(path)
    child = os.fork()
    if child == 0:
        at_each_line(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == step else None)
        os._exit(3)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = tuple(group.files())
    seen.add(left)
    group.look(group.old)
    group.look(group.reader())
    group.folder = group.reader()  # another one does it
    group.folder.look()
    group.fold([n for n in (1, 2) if f"{n}.shard" in left])
    group.look(group.old)
    group.look(group.reader())
    assert group.files() == ["dead.shard"], group.files()
    shutil.rmtree(path)
    for store in (group.old, group.folder):
        store.close()
    os.close(group.fd)
print(len(seen))
"""


def test_totals_are_whole_before_every_line_of_a_fold_and_after_a_kill_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4  # all are there, a new file beside them, one removed, both removed
