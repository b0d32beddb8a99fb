"""How is a file under /proc read many times a second? Opened once; each read is one system call."""

from __future__ import annotations

import os
import threading


class ProcFile:
    """A small file of ``/proc`` or a control group. It follows a fork: there, ``self`` is another process.

    One call for each reading matters: each gives the GIL away, and a busy process gives it back only after 5 ms.
    """

    __slots__ = ("_fd", "_lock", "_path", "_pid", "_size")

    def __init__(self, path: str, size: int = 4_096) -> None:
        self._path, self._size = path, size
        self._fd = -1
        self._pid = 0
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The whole content; OSError where there is no such file or it may not be read."""
        pid = os.getpid()
        if pid != self._pid:
            self._lock = threading.Lock()  # the one of the parent may be held by a thread that is not here
            self._pid = pid
            self._close()
        with self._lock:  # or close() could hand the number of the descriptor to another file meanwhile
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, self._size, 0)

    def text(self) -> str:
        """The whole content; "" where there is no such file or it may not be read."""
        try:
            return self.read().decode(errors="replace")
        except (OSError, ValueError):
            return ""

    def close(self) -> None:
        """Give the descriptor back; a later read opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close()
