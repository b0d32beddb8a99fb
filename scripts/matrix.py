"""Do the resource types hold with the oldest and the newest versions that they declare? ``make matrix`` asks.

Each row is an environment of its own under ``.matrix``, with one version of one library, in which the library's
contract tests run. It takes minutes and fetches old packages: CI may leave it out. ``ONLY=redis make matrix`` runs the
rows whose name begins so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".matrix"
#: What the tests need beside the library.
COMMON = ("fastapi", "numpy", "psutil", "pytest>=9", "pytest-asyncio>=1.2", "pytest-timeout>=2.3", "greenlet")


class Row(NamedTuple):
    """One environment: its name, what is installed, which tests run there, with what and less which of them."""

    name: str
    packages: tuple[str, ...]
    tests: str
    plugin: str = ""
    without: str = ""


def _rows() -> list[Row]:
    drivers = ("psycopg[binary]", "asyncpg", "aiosqlite")
    confluent = "tests/contract/test_confluent_kafka.py"
    database, http = "tests/contract/test_database.py", "tests/contract/test_http_client.py"
    old = ("psycopg2-binary", "aiosqlite<0.20")
    rows = [
        Row("sqlalchemy-1.4", ("sqlalchemy==1.4.*", *old), "tests/matrix/check_sqlalchemy_1_4.py"),
        Row("sqlalchemy-2.0", ("sqlalchemy==2.0.*", *drivers), database),
        Row("sqlalchemy-2.1", ("sqlalchemy==2.1.*", *drivers), database),
    ]
    for version in ("4.2", "4.6", "5.0", "5.3", "6.4", "7.0", "8.1"):
        plugin = "tests.matrix.old_redis" if version < "5.3" else ""
        row = Row(f"redis-{version}", (f"redis=={version}.*",), "tests/contract/test_redis.py", plugin)
        rows.append(row)
    rows += [
        Row(f"httpx-{version}", (f"httpx=={version}", "httpx2"), http)
        for version in ("0.25.1", "0.26.0", "0.27.2", "0.28.1")
    ]
    for version in ("0.27", "0.29", "0.30", "0.32"):
        # Up to 0.30 a pool that is dropped lives on, watched or not.
        without = "goes_when_it_is_dropped" if version < "0.31" else ""
        test = "tests/contract/test_asyncpg.py"
        rows.append(Row(f"asyncpg-{version}", (f"asyncpg=={version}.*",), test, without=without))
    pools = "tests/contract/test_async_pools.py tests/contract/test_sync_pools.py"
    oldest = ("psycopg[binary]==3.1.*", "psycopg-pool==3.1.*", "aiomysql==0.2.*", "asyncmy==0.2.9")
    newest = ("psycopg[binary]==3.3.*", "psycopg-pool==3.3.*", "aiomysql==0.3.*", "asyncmy")
    rows += [
        Row("pools-oldest", (*oldest, "psycopg2-binary==2.9.*"), pools),
        Row("pools-newest", (*newest, "psycopg2-binary==2.9.*"), pools),
    ]
    for version in ("4.9", "4.13", "4.20"):
        packages = (f"pymongo=={version}.*", "secantusdb")
        without = "async_client" if version == "4.9" else ""  # not yet meant for use then
        rows.append(Row(f"pymongo-{version}", packages, "tests/contract/test_pymongo.py", without=without))
    rows += [
        Row(f"aiosqlite-{version}", (f"aiosqlite=={version}.*",), "tests/contract/test_aiosqlite.py")
        for version in ("0.17", "0.20", "0.22")
    ]
    for version in ("2.0", "2.3", "3.0"):
        clients = (f"kafka-python=={version}.*", "aiokafka", "confluent-kafka", "six")
        without = "sent_taken or test_dies"  # of aiokafka
        row = Row(f"kafka-python-{version}", clients, "tests/contract/test_kafka.py", without=without)
        rows.append(row)
    extra = ("attrs", "cachetools", "httpx", "authlib", "typing-extensions")
    rows += [
        Row(f"confluent-{version}", (f"confluent-kafka=={version}.*", *extra), confluent)
        for version in ("2.3", "2.8", "2.16")
    ]
    return rows


def run(row: Row) -> bool:
    """Make the environment of ``row`` where it is missing, and run its tests there."""
    place = PLACE / row.name
    python = place / "bin" / "python"
    uv = str(Path(sys.executable).with_name("uv"))
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python), *COMMON, *row.packages]
    subprocess.run(install, check=True)
    # Old versions warn of what is new to them.
    options = ["-q", "--timeout=120", "--override-ini=filterwarnings=default", "-p", "no:cacheprovider"]
    command = [str(python), "-m", "pytest", *options, *row.tests.split()]
    if row.plugin:
        command += ["-p", row.plugin]
    if row.without:
        command += ["-k", f"not ({row.without})"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for attempt in ("", ", second try"):  # they measure times, and the machine may be busy
        print(f"== {row.name}: {' '.join(row.packages)}{attempt}", flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0:
            return True
    return False


def main() -> int:
    chosen = [row for row in _rows() if row.name.startswith(os.environ.get("ONLY", ""))]
    failed = [row.name for row in chosen if not run(row)]
    said = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{len(chosen) - len(failed)} of {len(chosen)} environments passed{said}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
