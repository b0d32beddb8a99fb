#!/usr/bin/env bash
# Install Debian packages: scripts/apt.sh PACKAGE...
# Only as root on a Debian system; else says what to install and fails. No service is started.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: $* (on Debian, as root: apt-get install --no-install-recommends $*)" >&2
    exit 1
fi

# Debian asks this file before it starts a service that it has just installed.
policy=/usr/sbin/policy-rc.d
if ! [ -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi

log=$(mktemp)
echo "installing $*"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
rm -f "$log"
