"""Does the code keep the shape that CONTRIBUTING promises?"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# What an application imports. The last two define what they export; the facades only gather it.
PUBLIC = [
    "uno.core.resources",
    "uno.core.monitoring.resources",
    "uno.core.monitoring.health",
    "uno.core.monitoring.integration",
    "uno.core.monitoring.http_server",
    "uno.core.monitoring.otel",
    "uno.testing",
]
FACADES = ["uno", "uno.core", "uno.core.resources", "uno.core.monitoring", "uno.core.monitoring.resources"]
MOST_LINES = 800


def test_layers() -> None:
    contracts = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert contracts.returncode == 0, contracts.stdout + contracts.stderr


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_defines_nothing(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is missing"
    assert spec.origin is not None
    for statement in ast.parse(Path(spec.origin).read_text()).body:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                continue
            case ast.Assign(
                targets=[ast.Name(id="__all__" | "__version__" | "_LATER")],
                value=ast.List() | ast.Constant() | ast.Dict(),
            ):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body) if all(
                isinstance(each, ast.ImportFrom) for each in body
            ):
                continue
            case ast.FunctionDef(name="__getattr__" | "__dir__"):  # what is imported when it is asked for
                continue
        pytest.fail(f"{spec.origin}:{statement.lineno} is neither an import nor __all__")


def test_importing_the_facade_loads_nothing_from_outside() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import uno.core.monitoring.resources\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - set(sys.stdlib_module_names) - {'uno'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_no_file_is_long() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_public_names_are_those_of_the_list() -> None:
    listed = (ROOT / "tests" / "public_names.txt").read_text().splitlines()
    found = [f"{module}:{name}" for module in PUBLIC for name in importlib.import_module(module).__all__]
    assert sorted(found) == sorted(line for line in listed if line and not line.startswith("#"))


def test_contributing_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folder = SOURCE / "uno" / "core" / "monitoring"
    names = [path.name + ("/" if path.is_dir() else "") for path in folder.iterdir() if path.name[0] != "_"]
    assert [name for name in names if f"`{name}`" not in text] == []
