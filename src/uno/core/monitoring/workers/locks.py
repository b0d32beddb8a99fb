"""Is the process that owns a file alive, and who may change a directory now?

POSIX record locks answer both: the kernel releases them when their process ends, however it ends, even while a
forked child lives on (``flock`` is inherited, and is not). A process loses its locks on a file when it closes *any*
descriptor of that file, also those that ``mmap`` duplicates: a process never opens its own shard a second time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

AVAILABLE = fcntl is not None


#: A process has one lock on a file, whatever its threads do, and closing the file in one of them would drop it.
_mutex = threading.Lock()


def reinit_after_fork() -> None:
    """Another thread of the parent may have held it."""
    global _mutex
    _mutex = threading.Lock()


class BusyError(OSError):
    """Somebody else holds the lock for too long."""


def take(fd: int) -> bool:
    """Lock the file for this process; False when another process holds it. ``fd`` is open for writing."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def is_free(fd: int) -> bool:
    """Whether no other process holds the lock. Two that ask at once do not mislead each other."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return True


@contextmanager
def held(directory: int, name: str, seconds: float) -> Iterator[None]:
    """Hold the lock file ``name`` of an open directory. BusyError after ``seconds``, OSError where it cannot be.

    The file may be removed by whoever holds it: then a new one is made and locked.
    """
    until = time.monotonic() + seconds
    mutex = _mutex
    if not mutex.acquire(timeout=seconds):
        raise BusyError(errno.EAGAIN, f"{name} is held by another thread")
    try:
        with contextlib.closing(_Descriptor()) as file:
            while not file.lock(directory, name):
                if time.monotonic() >= until:
                    raise BusyError(errno.EAGAIN, f"{name} is held by another process")
                time.sleep(0.005)
            yield
    finally:
        mutex.release()


class _Descriptor:
    """A lock file, open or not."""

    def __init__(self) -> None:
        self._fd = -1

    def lock(self, directory: int, name: str) -> bool:
        """Lock the file that has this name now; False when that cannot be yet."""
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(name, flags, 0o600, dir_fd=directory)
        if not take(self._fd):
            return False
        mine = os.fstat(self._fd)
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            self.close()  # whoever held it has removed it
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
