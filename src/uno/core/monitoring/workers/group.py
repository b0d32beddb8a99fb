"""Which processes are workers of one service?

Those that the same parent started, when there is evidence that it starts workers: ``multiprocessing`` says so
(uvicorn, hypercorn, granian), or the process was forked from a parent that runs the very same command line (gunicorn,
uWSGI, Celery). A shell's children share a parent too, hence that alone is none, and neither is ``WEB_CONCURRENCY``,
which platforms set for every program. The key of a group holds the parent with the time of its start, the
user, the pid namespace, and the service's name, else the file that made the monitor: two applications of one
launcher stay apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys

from uno.core.monitoring.workers import locks
from uno.core.records import NamedTuple

_UNO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))) + os.sep


class RefusedError(OSError):
    """A directory is not ours alone: nothing is read from it and nothing written."""


class Key(NamedTuple):
    """Where the shards of a group are: the directory of a user's groups, and the group's own below it."""

    base: str
    name: str

    @property
    def root(self) -> int:
        """The process that starts the workers; 0 for a directory that they name."""
        parts = self.name.split("-")
        return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


def maker() -> str:
    """The file of the innermost caller that does not belong to uno."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not os.path.abspath(name).startswith(_UNO):
            return os.path.realpath(name)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def command(pid: int) -> bytes:
    """The command line of a process, b"" where it cannot be told."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        pass
    if os.path.exists("/proc/self/cmdline"):
        return b""
    try:
        import psutil

        return "\0".join(psutil.Process(pid).cmdline()).encode("utf-8", "surrogateescape")
    except Exception:  # noqa: BLE001 - gone, or not to be looked at
        return b""


def started(pid: int) -> str:
    """When a process started, in the system's own measure; "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        pass
    if os.path.exists("/proc/self/stat"):
        return ""
    try:
        import psutil

        return str(int(psutil.Process(pid).create_time() * 1000))
    except Exception:  # noqa: BLE001 - gone, or not to be looked at
        return ""


def parent_of_workers() -> int | None:
    """The process that started this one as one of its workers; None without evidence of that."""
    if not locks.AVAILABLE:
        return None
    process = sys.modules.get("multiprocessing.process")
    parent = process.parent_process() if process is not None else None
    if parent is not None and parent.pid:
        return int(parent.pid)
    pid = os.getppid()
    if pid <= 0:
        return None
    own, other = command(os.getpid()), command(pid)
    if own and own == other:
        return pid
    titles = [text.partition(b"\0")[0].strip() for text in (own, other)]
    if titles[0].startswith(b"gunicorn: worker [") and titles[1].startswith(b"gunicorn: master ["):
        same = titles[0].partition(b"[")[2] == titles[1].partition(b"[")[2]
        return pid if same else None
    uwsgi = sys.modules.get("uwsgi")  # it exists inside of uWSGI only
    master = getattr(uwsgi, "masterpid", None)
    if callable(master) and master() == pid:
        return pid
    return None


def siblings(root: int) -> list[int]:
    """The other living processes that ``root`` has started; none where that cannot be told."""
    found: list[int] = []
    for pid in _children(root):
        called = command(pid)
        if b"multiprocessing.forkserver" in called:  # it starts them on behalf of ``root``
            found += _children(pid)
        elif b"multiprocessing.resource_tracker" not in called:
            found.append(pid)
    return [pid for pid in found if pid != os.getpid() and command(pid)]  # a zombie has no command line


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for task in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def base_directory() -> str:
    """Where this user's groups are kept."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return os.path.join(runtime, "uno-workers")
    shared = "/dev/shm"
    if os.access(shared, os.W_OK | os.X_OK):
        return os.path.join(shared, f"uno-workers-{os.getuid()}")
    import tempfile

    return os.path.join(tempfile.gettempdir(), f"uno-workers-{os.getuid()}")


def key_of(identity: str, root: int) -> Key:
    """The group of those who have the parent ``root`` and the same identity."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    told = f"{os.getuid()}|{namespace}|{identity}"
    digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()
    return Key(base_directory(), f"{digest}-{root}-{started(root)}")


def given_key(directory: str, place: int) -> Key:
    """The group of all that name ``directory``."""
    return Key(os.path.join(os.path.abspath(directory), f"uno-workers-{os.getuid()}"), f"given-{place}")


def open_own(name: str, *, at: int | None = None, create: bool = True) -> int:
    """Open a directory that is this user's alone, made when it is missing. RefusedError for any other."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=at)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=at)
    except NotADirectoryError:
        raise RefusedError(f"{name} is no directory: somebody else put it there") from None
    except OSError as error:
        if os.path.islink(name) if at is None else _is_link(name, at):
            raise RefusedError(f"{name} is a symbolic link: somebody else put it there") from None
        raise error
    found = os.fstat(fd)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        os.close(fd)
        whose = (
            "belongs to another user"
            if found.st_uid != os.getuid()
            else "is open to others (its mode is not 0700)"
        )
        raise RefusedError(f"{name} {whose}")
    return fd


def _is_link(name: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def open_shard(name: str, directory: int) -> int:
    """Open another worker's file. RefusedError when it is not a file of this user's own."""
    # Never a FIFO that makes the caller wait, never a link.
    fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_nlink > 1:
        os.close(fd)
        raise RefusedError(f"{name} is not a file of this user's own")
    return fd
