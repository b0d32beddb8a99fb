"""What does a new resource type begin with? A file that works as it is, its test, and where to change it."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")

_TYPE = '''\
"""How is @NAME@ watched?"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_error
from uno.core.monitoring.instrumentation import Stat, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resources import ResourceTypeMonitor
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource


class @CLASS@Client:
    """Stands for the library's class, so that this file works as it is. Delete it when `targets` names the real one."""

    def __init__(self, host: str, password: str = "") -> None:
        self.host, self.password, self.size, self.used = host, password, 10, 0

    def call(self, text: str) -> str:
        """Something that takes time and may fail."""
        return text.upper()


class @CLASS@Monitor(ResourceTypeMonitor):
    """Calls and slots of a @NAME@ client."""

    resource_type = "@NAME@"
    # Dotted names of the classes to recognise, subclasses included; uno imports nothing for them.
    targets = (f"{__name__}.@CLASS@Client",)
    # The module that must be loaded before install() runs, and the versions that were tested.
    library, tested = __name__, ""
    # False: collect_metrics only reads memory. True: it runs on a thread of its own.
    blocking = False
    # Standard names are in names.py; add_metric in setup_metrics() defines others.
    metrics = pick("uno.resource.utilization", "uno.resource.errors", "db.client.operation.duration")
    headline = ("uno.resource.utilization", "db.client.operation.duration", "uno.resource.errors")
    thresholds = (("uno.resource.utilization", Threshold(0.9, None, "Nearly all slots are in use", for_=10)),)

    def identify(self, target: Any) -> Identity:
        # From fields that are known to be harmless. Never repr(target): it may show a password.
        return Identity("@NAME@", endpoint=target.host)

    def install(self) -> list[Callable[[], None]]:
        # `install` puts a plain closure on the class, and returns what takes it off again.
        return [install(@CLASS@Client, "call", _call)]

    def collect_metrics(self, resource: Resource) -> None:
        stat = stat_of(resource.target)
        used, size = self.capacity(resource.target)
        # None says "unknown" and shows a gap; never 0 for what was not read.
        self.update_metric("uno.resource.utilization", used / size if size else None)
        self.update_metric("uno.resource.errors", stat.errors)
        self.update_metric("db.client.operation.duration", stat.duration)

    def capacity(self, target: Any) -> tuple[float, float]:
        return target.used, target.size

    def explain(self, target: Any, metric: str) -> str:
        return describe_error(stat_of(target))


def _call(original: Any) -> Any:
    """Times calls. The application's call goes through whatever happens to the numbers."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _note(self, start, error)
            raise
        _note(self, start)
        return result

    return call


def _note(client: Any, start: float, error: BaseException | None = None) -> None:
    try:
        stat: Stat = stat_of(client)
        stat.done(perf_counter() - start, error)
    except Exception as failure:  # noqa: BLE001 - a hook never fails the call
        failures("@CLASS@Client.call", failure)
'''

_TEST = '''\
"""Does @NAME@ keep what uno promises of every resource type?"""

from __future__ import annotations

from @MODULE@ import @CLASS@Client, @CLASS@Monitor
from uno.testing import Watched, meets_contract, wait_until, watching


def make() -> @CLASS@Client:
    return @CLASS@Client("127.0.0.1", password="correct-horse-battery")


def test_the_contract() -> None:
    meets_contract(@CLASS@Monitor, make, lambda client: client.call("a"), secret="correct-horse-battery")


def test_calls_are_counted() -> None:
    with watching(@CLASS@Monitor) as monitor:
        client = make()
        watched = Watched(monitor, client)
        for _ in range(3):
            client.call("a")
        wait_until(lambda: watched.read("db.client.operation.duration", "count") == 3, 10, "three calls")
        assert watched.read("uno.resource.utilization") == 0
'''


def new_type(name: str, path: str = ".") -> list[Path]:
    """Write ``NAME.py`` and ``test_NAME.py`` into the folder ``path``, which is made; returns both.

    ValueError for a bad name, FileExistsError when one of the two is there: then none is written.
    """
    if not _NAME.match(name) or keyword.iskeyword(name) or name.endswith("_") or "__" in name:
        raise ValueError(
            f"{name!r} is no name for a resource type: small letters, digits and single underscores, beginning with "
            "a letter, at most 40, no word of Python; such as 'memcached'"
        )
    if name in sys.stdlib_module_names:
        raise ValueError(f"a file {name}.py would hide Python's own module {name!r}; choose another name")
    folder = Path(path)
    files = {folder / f"{name}.py": _TYPE, folder / f"test_{name}.py": _TEST}
    for file in files:
        if file.exists():
            raise FileExistsError(f"{file} is there already; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "@NAME@": name,
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
        "@MODULE@": _module(folder, name),
    }
    for file, text in files.items():
        for mark, word in words.items():
            text = text.replace(mark, word)
        file.write_text(text, encoding="utf-8")
    return list(files)


def _module(folder: Path, name: str) -> str:
    """What the file is imported as: with the packages that it lies in."""
    parts, place = [name], folder.resolve()
    while (place / "__init__.py").exists():
        parts.insert(0, place.name)
        place = place.parent
    return ".".join(parts)
