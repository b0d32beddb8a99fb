"""Are arq's jobs seen as they are? arq wants an older redis-py than Celery: both do not fit in one environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

CASES = Path(__file__).with_name("arq_cases.py")


@pytest.mark.timeout(180)
def test_in_an_environment_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "arq"
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--target", str(folder)]
    try:
        done = subprocess.run(
            [*uv, "--python", sys.executable, "arq==0.28.0"], capture_output=True, timeout=100, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"arq and the redis-py that it needs cannot be installed: {type(error).__name__}")
    if done.returncode:
        pytest.skip("arq and the redis-py that it needs cannot be installed beside the rest")
    path = os.pathsep.join(filter(None, (str(folder), *sys.path)))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        cwd=CASES.parents[2],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8_000:]
    assert "passed" in ran.stdout
