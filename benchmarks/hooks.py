"""What does being watched add to one call of the application?

The same program runs with a ticking monitor and without one, each time in a process of its own and in turns:
hooks that come and go within one process would upset the interpreter's caches. Figures are CPU time of the whole
process, so the monitor's own thread, which folds what the hooks have recorded, is counted in. The third column
compares the program with itself: differences below it are noise.
"""

from __future__ import annotations

import json
import statistics

from benchmarks._measure import line, python

ROUNDS = 7
LIMIT = 2.0

PROGRAM = """
import json, os, tempfile, time
from concurrent.futures import ThreadPoolExecutor

import redis
import sqlalchemy as sa

class Wire(redis.Connection):  # a connection to nowhere: what is left is the client's own work
    def connect(self): pass
    def can_read(self, *args, **kwargs): return False
    def send_command(self, *args, **kwargs): pass
    def read_response(self, *args, **kwargs): return b"1"

def checkout():
    engine.raw_connection().close()

def select():
    with engine.connect() as connection:
        connection.execute(one)

def get():
    cache.get("key")

def tasks():
    for task in [pool.submit(int) for _ in range(100)]:
        task.result()

folder = tempfile.TemporaryDirectory()
engine = sa.create_engine("sqlite:///" + os.path.join(folder.name, "a.db"))
one = sa.text("SELECT 1")
cache = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Wire))
pool = ThreadPoolExecutor(1)
if WATCHED:
    from uno.core.monitoring.resources import ResourceMonitor
    monitor = ResourceMonitor(interval=1)
    resources = [monitor.manager.register(obj) for obj in (engine, cache, pool)]
    monitor.start()
    while monitor.store.frame is None or monitor.store.frame.seq < 2:
        time.sleep(0.01)

def measure(call, n, each=1):
    for _ in range(n // 10):
        call()
    begun = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - begun) / n / each * 1e6

found = {
    "checkout": measure(checkout, 60_000),
    "select": measure(select, 8_000),
    "redis": measure(get, 30_000),
    "task": measure(tasks, 300, 100),
}
if WATCHED:  # proof that the hooks were at work
    for resource, expected in zip(resources, (8_800, 33_000, 33_000)):
        assert monitor.stat_of(resource).total.value == expected, (resource.id, monitor.stat_of(resource).total.value)
    monitor.stop()
pool.shutdown()
engine.dispose()
folder.cleanup()
print(json.dumps(found))
"""

TITLES = {
    "checkout": "SQLAlchemy: check a connection out and return it",
    "select": "SQLAlchemy: connect, SELECT 1 on SQLite, close",
    "redis": "redis: a command, without the network",
    "task": "executor: a task",
}


def run() -> None:
    """CPU microseconds that monitoring adds, beside what the call costs without it."""
    runs = [
        tuple(json.loads(python(f"WATCHED = {watched}\n{PROGRAM}")) for watched in (False, True, False))
        for _ in range(ROUNDS)
    ]
    for name, title in TITLES.items():
        base = statistics.median((first[name] + last[name]) / 2 for first, _, last in runs)
        added = statistics.median(hooked[name] - (first[name] + last[name]) / 2 for first, hooked, last in runs)
        noise = statistics.median(abs(first[name] - last[name]) for first, _, last in runs)
        limit = "" if name == "select" else f"<= {LIMIT:g} us"
        line(title, f"+{added:.2f} us", limit, f"of {base:.1f} us, x{1 + added / base:.2f}; same program +-{noise:.2f}")
