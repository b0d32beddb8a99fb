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
    and nothing else is left behind; an OSError names ``path``. Devices, pipes and open descriptors (``/dev/stdout``)
    are written to directly.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"the path of a file is a str or a Path, not {type(path).__name__}")
    asked = Path(path)
    if asked.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "this is a directory, give the name of a file in it", os.fspath(path) or str(asked)
        )
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    opened = os.path.abspath(asked).startswith(
        ("/dev/", "/proc/")
    )  # a file there is one that is open already
    if asked.exists() and (opened or not asked.is_file()):
        with open(asked, "a", **how) as file:  # type: ignore[call-overload]
            fill(file)
        return asked
    target = Path(os.path.realpath(asked))  # a link keeps pointing where it points
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        place = next(up for up in target.parents if up.exists())
        raise NotADirectoryError(
            errno.ENOTDIR, "this is no directory, files cannot be put in it", str(place)
        ) from None
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
