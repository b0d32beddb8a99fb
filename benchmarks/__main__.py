"""``python -m benchmarks [name ...]``: all figures, or those of some files of this folder."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from pathlib import Path

#: Run only when they are named.
LONG = {"races"}


def main() -> None:
    """Run each file that has a ``run()``."""
    logging.getLogger("uno").setLevel(logging.ERROR)
    names = [
        found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name[0] != "_"
    ]
    for name in sys.argv[1:] or sorted(set(names) - LONG):
        importlib.import_module(f"benchmarks.{name}").run()


if __name__ == "__main__":
    main()
