"""Is anything lost where threads, signals, finalisers, forks, folds and scrapes meet?

The tests of exactness at their full size: four threads of ten million increments each, of several instruments; twelve
million observations with two folders, a tick and scrapes; three million recordings that signals interrupt; a thousand
forks in the middle of recording. They fail where one is lost or counted twice, or where count, sum and buckets are
not of one moment. It takes minutes, so it runs only when it is named.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._measure import line

TESTS = Path(__file__).parents[1] / "tests" / "unit" / "test_exactness.py"


def run() -> None:
    """All tests of exactness."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-v", "--durations=10", "--no-header", str(TESTS)]
    done = subprocess.run(
        command, env={**os.environ, "UNO_FULL_RACES": "1"}, check=False, cwd=TESTS.parents[2]
    )
    line(
        "races at full size",
        f"{time.perf_counter() - begun:.0f} s",
        "0 lost",
        "held" if not done.returncode else "FAILED",
    )
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    run()
