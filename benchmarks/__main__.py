"""``python -m benchmarks [name ...]``: all figures, or those of some files of this folder."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from pathlib import Path

from benchmarks._measure import yardstick

#: What the yardstick showed, in ns, on the machine that the targets are of.
TARGETS = 453
#: Run only when they are named.
LONG = {"races"}


def main() -> None:
    """Run each file that has a ``run()``."""
    logging.getLogger("uno").setLevel(logging.ERROR)
    names = [
        found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name[0] != "_"
    ]
    for name in sys.argv[1:] or sorted(set(names) - LONG):
        took = yardstick() * 1e9
        print(f"{name}, where an inc() of prometheus_client takes {took:.0f} ns (targets: {TARGETS} ns)")
        importlib.import_module(f"benchmarks.{name}").run()


if __name__ == "__main__":
    main()
