#!/usr/bin/env bash
# Make .venv with the given extras of the project, at the versions of constraints.txt.
#   scripts/venv.sh EXTRAS        for example: scripts/venv.sh demo
# PYTHON=... chooses the interpreter. Does nothing when .venv already has them.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$1
venv=.venv
stamp=$venv/.installed-$extras

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "uno needs Python 3.11 or later; on Debian: apt-get install python3.11 python3.11-venv" >&2
    return 1
}

if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi

if ! [ -x $venv/bin/python ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    # Debian has venv, but not what it needs to put pip in, in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        scripts/apt.sh "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" ||
            { echo "$python cannot make a virtual environment: its venv package is missing" >&2; exit 1; }
    fi
    echo "making $venv with $python"
    "$python" -m venv $venv
fi

echo "installing .[$extras] into $venv"
# uv takes a fifth of pip's time; where it cannot be had, or cannot reach what pip is set up for, pip does it.
pin=(--constraint constraints.txt)
if ! { $venv/bin/python -m pip install -qq "${pin[@]}" uv &&
    $venv/bin/uv pip install --quiet --python $venv/bin/python \
        "${pin[@]}" --build-constraint constraints.txt --editable ".[$extras]"; }; then
    PIP_CONSTRAINT=constraints.txt $venv/bin/python -m pip install --quiet --editable ".[$extras]"
fi
touch "$stamp"
