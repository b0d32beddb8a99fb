"""When does a monitor share with the other workers, and what do its readers read?"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from uno.core.monitoring.workers import locks
from uno.core.monitoring.workers.group import (
    Key,
    given_key,
    key_of,
    maker,
    parent_of_workers,
)

if TYPE_CHECKING:
    from uno.core.monitoring.history import History
    from uno.core.monitoring.series import Frame, SeriesStore
    from uno.core.monitoring.workers.member import Member
    from uno.core.monitoring.workers.merge import MergedStore

log = logging.getLogger("uno.workers")

VARIABLE = "UNO_WORKERS"
_OFF = ("off", "no", "0", "false")


class WorkerSharing:
    """One monitor's part in the group of its service's workers; nothing happens outside of one.

    ``setting``: None to find out (the variable UNO_WORKERS may say "off" or name a directory), False to stand
    alone, or a directory that all workers name.
    """

    #: Which monitors of this process share, by identity: the first of each worker belong together, and so on.
    _places: ClassVar[dict[str, dict[int, WorkerSharing]]] = {}
    _places_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, store: SeriesStore, setting: str | os.PathLike[str] | bool | None, service: str
    ) -> None:
        if setting is None:
            text = os.environ.get(VARIABLE, "").strip()
            setting = False if text.lower() in _OFF else text or None
        elif setting is True or not isinstance(setting, (bool, str, os.PathLike)) or setting == "":
            raise TypeError("workers= is None (find out), False (stand alone) or a directory")
        self._store = store
        self._given = None if isinstance(setting, bool) or setting is None else os.fspath(setting)
        self._off = setting is False
        self._identity = f"service {service}" if service and service != "FastAPI" else f"file {maker()}"
        self._place: int | None = None
        self._key: Key | None = None
        self._member: Member | None = None
        self._left: MergedStore | None = (
            None  # what was shown last, and what the history's columns are those of
        )
        self._stop: Callable[[], None] | None = None
        self._failed = False
        self._waiting: SeriesStore | None = None  # what is shown until the others let this worker in: nothing
        self._forked_from = 0  # a process that monitors too, and will join its children's group

    @property
    def view(self) -> SeriesStore:
        """What readers read: the store of all workers, or that of this process."""
        member = self._member
        if member is not None:
            return member.merged
        if self._waiting is not None:  # its own numbers alone would be a fall of the total
            return self._waiting
        return self._left or self._store

    @property
    def count(self) -> int:
        """How many workers share, this one included; 1 for a process that stands alone."""
        member = self._member
        return 1 if member is None else max(1, member.merged.workers)

    # -- life ------------------------------------------------------------------------------------------

    def join(self, stop: Callable[[], None], history: History) -> None:
        """The monitor starts. ``stop`` is called when a child of multiprocessing ends. Never raises."""
        if not self._off and self._member is None:
            self._join(stop)
        if self._member is None and self._left is not None:  # alone from now on, with columns of its own
            self._left = None
            history.close()

    def _join(self, stop: Callable[[], None]) -> None:
        self._stop, self._failed = stop, False
        # Now, and never in the monitor's thread: a child that is forked in the middle of an import waits for ever.
        import uno.core.monitoring.workers.member  # noqa: F401

        if not locks.AVAILABLE:
            if self._given is not None or _started_by_multiprocessing():
                log.warning(
                    "there are no record locks on this system: each worker process shows its own numbers only"
                )
            return
        self._take_place()
        if self._key is None:  # a forked child of a worker has its parent's
            self._key = self._find_key()
        if self._key is not None:
            self._member = self._enter(self._key)
            self._stop_with_process()

    def _find_key(self) -> Key | None:
        if self._given is not None:
            return given_key(self._given, self._place or 0)
        root = parent_of_workers()
        return None if root is None else self._key_below(root)

    def _key_below(self, root: int) -> Key:
        return key_of(f"{self._identity}|{self._place}", root)

    def _take_place(self) -> None:
        with self._places_lock:
            taken = self._places.setdefault(self._identity, {})
            if self._place is None:
                self._place = next(n for n in range(len(taken) + 1) if n not in taken)
            taken[self._place] = self

    def _leave_place(self) -> None:
        with self._places_lock:
            taken = self._places.get(self._identity, {})
            if self._place is not None and taken.get(self._place) is self:
                del taken[self._place]
            self._place = None

    def _enter(self, key: Key) -> Member | None:
        from uno.core.monitoring.workers.member import Member

        try:
            if self._given is not None:
                os.makedirs(self._given, mode=0o700, exist_ok=True)
            return Member(key, self._store, self._left or self._store, keep_for=self._forked_from)
        except locks.BusyError:  # the next tick tries again
            self._waiting = self._waiting or type(self._store)()
            return None
        except OSError as error:
            self._waiting = None
            self._failed = True
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
            log.warning("this worker shows its own numbers only, it cannot share with the others: %s", reason)
            return None

    def _stop_with_process(self) -> None:
        """multiprocessing ends its children without atexit."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None and self._stop is not None and _started_by_multiprocessing():
            util.Finalize(None, self._stop, exitpriority=10)

    def tick(self, frame: Frame) -> Frame:
        """Share this process' frame; returns that of all workers."""
        member = self._member
        if member is None:
            member = self._lead()
            if member is None:
                return frame
            merged = member.tick(frame)
            self._member, self._waiting = member, None  # from here on readers see it
            self._stop_with_process()
            return merged
        from uno.core.monitoring.workers.member import LostError, restart

        try:
            return member.tick(frame)
        except LostError:
            log.warning("the shard of this worker was taken away: what it counts from now on is in a new one")
            member.abandon()
            self._left = member.merged
            restart(self._store)
            self._member = self._enter(member.key)
            raise

    def _lead(self) -> Member | None:
        """Join late: because the others were busy, or, as the parent of a group, because children share by now."""
        if self._waiting is not None and self._key is not None:
            return self._enter(self._key)
        if self._off or self._failed or self._place is None or self._given is not None:
            return None
        if "multiprocessing.process" not in sys.modules and not _FORKED:
            return None
        key = self._key_below(os.getpid())
        return self._enter(key) if os.path.isdir(os.path.join(*key)) else None

    def tell(self, words: bytes) -> bool:
        """Let the other workers read ``words``, until the next ones. False when they are too many."""
        member = self._member
        return member is None or member.tell(words)

    @property
    def words(self) -> list[tuple[int, bytes]]:
        """What the other workers said, by their numbers."""
        member = self._member
        return [] if member is None else member.merged.words

    def refresh(self, now: float) -> None:
        """Bring the totals of all workers to this moment, for a reader."""
        member = self._member
        if member is not None:
            member.merged.refresh(now)

    def leave(self) -> None:
        """The monitor stops, after a last frame of its store."""
        member = self._member
        self._key = self._waiting = None
        if member is not None:
            self._left = member.merged  # its own numbers alone would be a fall of the total
            self._member = None
            member.leave(self._store.frame)
        self._leave_place()

    def reinit_after_fork(self, *, was_running: bool) -> None:
        """In a forked child: let go of the parent's shard, and count from zero."""
        self._forked_from = os.getppid() if was_running else 0
        locks.reinit_after_fork()
        type(self)._places_lock = threading.Lock()
        if self._off or not locks.AVAILABLE:
            return
        member, self._member = self._member, None
        self._left = self._waiting = None
        if member is not None:
            self._key = member.key
            member.abandon()
        else:
            self._key = None
        from uno.core.monitoring.workers.member import restart

        restart(self._store)
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:  # it forgets all that was to be done at the end, and calls this afterwards
            util.register_after_fork(self, WorkerSharing._stop_with_process)


def _started_by_multiprocessing() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


_FORKED: list[bool] = []


def _note_fork() -> None:
    if not _FORKED:
        _FORKED.append(True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_fork)
