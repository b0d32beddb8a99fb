"""How does a file appear whole or not at all?"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


def write(path: str | os.PathLike[str], fill: Callable[[TextIO], object]) -> Path:
    """Let ``fill`` write a UTF-8 text file, in directories that are made, and return its path.

    It is written beside its place and then put there at once. Whatever is raised, an older file stays as it was
    and nothing else is left behind; an OSError names ``path``. Devices and pipes are written to directly.
    """
    asked = Path(path)
    if asked.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the report needs a file name, this is a directory", str(asked))
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    if asked.exists() and not asked.is_file():
        with open(asked, "w", **how) as file:  # type: ignore[call-overload]
            fill(file)
        return asked
    target = Path(os.path.realpath(asked))  # a link keeps pointing where it points
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".uno-{os.urandom(6).hex()}.tmp"
    try:
        with open(beside, "x", **how) as file:  # type: ignore[call-overload]
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        os.replace(beside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            raise OSError(error.errno, error.strerror, str(asked)) from None
        raise
    return asked
