#!/usr/bin/env bash
# See that the programs which the tests start are there, and install what is missing where that is possible.
# Where it is not, the tests that need them are skipped with the reason; with CI=true that is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/usr/lib/postgresql/bin

missing=()
need() { # need PACKAGE PROGRAM: PROGRAM is a name on the PATH or a pattern
    command -v "$2" >/dev/null || compgen -G "$2" >/dev/null || missing+=("$1")
}
need postgresql '/usr/lib/postgresql/*/bin/initdb'
need mariadb-server /usr/sbin/mariadbd
need redis-server redis-server
need rabbitmq-server rabbitmq-server
need nats-server nats-server
need mosquitto mosquitto
need prometheus promtool
need graphviz dot
need chromium chromium
need fonts-dejavu-core '/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf'

[ ${#missing[@]} = 0 ] && exit 0
if ! scripts/apt.sh "${missing[@]}"; then
    [ "${CI:-}" = true ] && exit 1
    echo "the tests that need these will be skipped" >&2
fi
