"""What does a monitor cost that has 50 resources, or 200, and nothing to do?"""

from __future__ import annotations

from benchmarks._measure import line, python

PROGRAM = """
import asyncio, queue, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from uno.core.monitoring.resources import ResourceMonitor
monitor = ResourceMonitor(interval=1)
seconds = 10
class Custom:
    def get_statistics(self): return {"depth": 1, "age": 2.0}
class Async:
    async def get_statistics(self): return {"depth": 1, "age": 2.0}
made = {
    "library": [lambda: ThreadPoolExecutor(1), queue.Queue],
    "custom": [Custom], "async": [Async],
}[KIND]
for n in range(COUNT):
    monitor.manager.register(made[n % len(made)](), id=f"r{n}")
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
with monitor:
    time.sleep(3)
    begun = used()
    time.sleep(seconds)
    print((used() - begun) / seconds * 100)
"""


def run() -> None:
    """The whole process's CPU time over ten seconds, in percent of a core."""
    for count, kind, words in (
        (50, "library", "thread pools and queues"),
        (50, "custom", "custom resources, plain functions"),
        (50, "async", "custom resources, async functions"),
        (200, "library", "thread pools and queues"),
    ):
        share = float(python(f"KIND, COUNT = {kind!r}, {count}\n{PROGRAM}"))
        line(f"idle monitor, {count} {words}", f"{share:.2f} %", "<= 0.5 %")
