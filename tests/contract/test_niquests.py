"""Is niquests seen as it is? It puts urllib3-future in the place of urllib3: both do not fit in one environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("niquests_cases.py")


@pytest.mark.timeout(180)
def test_in_an_environment_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "niquests"
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--target", str(folder)]
    try:
        done = subprocess.run(
            [*uv, "--python", sys.executable, "niquests==3.21.2"],
            capture_output=True,
            timeout=100,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"niquests and urllib3-future cannot be installed: {type(error).__name__}")
    if done.returncode:
        pytest.skip("niquests and urllib3-future cannot be installed beside the rest")
    path = os.pathsep.join(filter(None, (str(folder), *sys.path)))
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::ResourceWarning",
            str(CASES),
        ],
        cwd=CASES.parents[2],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8_000:]
    assert "passed" in ran.stdout
