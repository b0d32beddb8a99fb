"""Does every Python block of the README and of docs/ run as a reader would run it?

The blocks of a page share their names, as if typed one after the other. Each page is one script in a process
and an empty folder of its own, with warnings as errors. Lines keep their numbers: a traceback points to the
page. A block that cannot run here has ``<!-- skip: reason -->`` on a line before it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r"<!-- skip: .+ -->\s*\Z")


def script(page: str) -> str:
    """The page with everything blank but the code of its Python blocks."""
    lines = [""] * (page.count("\n") + 1)
    for block in BLOCK.finditer(page):
        if SKIP.search(page[: block.start()]):
            continue
        first = page[: block.start("code")].count("\n")
        code = textwrap.dedent(block["code"]).splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_run(page: Path, tmp_path: Path) -> None:
    code = script(page.read_text())
    if not code.strip():
        pytest.skip("no Python block")
    program = tmp_path / f"{page.name}.py"
    program.write_text(code)
    folder = tmp_path / "work"
    folder.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{page.name} does not end: {(error.stderr or b'')[-2000:]!r}")
    assert done.returncode == 0, f"{page.name} line numbers are the page's own\n{done.stderr}"


def test_a_block_keeps_its_lines_and_a_marked_one_is_left_out() -> None:
    run = ["# Title", "```python", "x = 1", "```", "- in a list", "  ```python", "  x += 1", "  ```"]
    left_out = [
        "<!-- skip: needs a cluster -->",
        "",
        "```python",
        "x = None",
        "```",
        "```console",
        "$ ls",
        "```",
    ]
    lines = script("\n".join([*run, *left_out])).split("\n")
    assert lines == ["", "", "x = 1", "", "", "", "x += 1", "", *[""] * len(left_out)]


def test_the_page_of_resource_types_is_up_to_date() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "resource_types.py"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "resource-types.md").read_text() == printed.stdout, "run `make docs`"
