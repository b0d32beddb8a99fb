"""What if a library is not installed, breaks while it is imported, or has become something else?

Each in a process of its own, for every library that uno knows.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import asyncio, importlib.abc, importlib.machinery, json, sys, types
    from uno.core.monitoring.resource_types import load
    from uno.core.monitoring.resources import ResourceMonitor
    from uno.core.monitoring.dashboard.cards import Cards
    from uno.core.monitoring.exporters.prometheus import PrometheusExporter

    kinds = [kind for kind in load().kinds if kind.library.partition(".")[0] not in ("", "uno")]
    libraries = {kind.library.partition(".")[0] for kind in kinds} - sys.stdlib_module_names
    assert len(libraries) > 20

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in libraries:
                if how == "missing":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
                return importlib.machinery.ModuleSpec(name, self)

        def exec_module(self, module):
            raise RuntimeError("broken")

    how = sys.argv[1]
    sys.meta_path.insert(0, Finder())
    for name in sorted(libraries):
        try:
            __import__(name)
        except (ImportError, RuntimeError):
            pass
        else:
            raise AssertionError(f"{name} was loaded already")

    if how == "changed":  # modules and classes are there, and of what was in them nothing
        def module(name):
            for end in range(1, name.count(".") + 2):
                part = ".".join(name.split(".")[:end])
                if part not in sys.modules:
                    made = sys.modules[part] = types.ModuleType(part)
                    made.__version__ = "0.0.0"
                    if "." in part:
                        setattr(sys.modules[part.rpartition(".")[0]], part.rpartition(".")[2], made)
            return sys.modules[name]

        class Changed:
            def answer(self):
                return 42

    monitor = ResourceMonitor(interval=0.05)
    targets = {}
    with monitor:
        if how == "changed":
            for kind in kinds:
                if kind.library.partition(".")[0] not in libraries:
                    continue
                low = kind.tested.partition(",")[0].strip(">=") if kind.tested.startswith(">=") else "1.0"
                for dotted in kind.targets:
                    place, _, name = dotted.rpartition(".")
                    library = module(kind.library)
                    library.__version__ = module(kind.library.partition(".")[0]).__version__ = low
                    if hasattr(module(place), name):
                        continue
                    cls = type(name, (Changed,), {"__module__": place})
                    setattr(module(place), name, cls)
                    targets[dotted] = target = cls()
                    assert target.answer() == 42
                    resource = monitor.manager.register(target, id=dotted)
                    assert resource.driver is not None, dotted
        monitor.discover_all_resources()
        for _ in range(3):
            monitor.tick()
        assert monitor.series("process"), "the others go on"
        for resource in monitor.manager:
            monitor.health_of(resource.id), monitor.holders(resource.id), monitor.series(resource.id)
        PrometheusExporter(monitor).render(), monitor.generate_dependency_graph(), monitor.generate_report()
        for _ in Cards(monitor).snapshot():
            pass
        assert all(target.answer() == 42 for target in targets.values())
    wrong = [
        f"{name} is hooked" for name, target in targets.items()
        if any(hasattr(value, "__uno_hook__") for cls in type(target).__mro__ for value in vars(cls).values())
    ]
    print(json.dumps({"targets": len(targets), "wrong": wrong}))
"""


@pytest.mark.parametrize("how", ["missing", "broken", "changed"])
def test_every_library(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert '"wrong": []' in done.stdout
