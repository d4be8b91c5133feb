#!/bin/sh
# Install what a lock names, its hashes checked: sh scripts/install.sh PYTHON LOCK
# By uv, which the lock of this project names, in a fraction of the time that pip takes; without a cache, so that nothing
# but the index and the lock decides. Where uv cannot, pip does: only pip reads what somebody has configured for pip.
set -eu
python=$1 lock=$2
root=$(cd "$(dirname "$0")/.." && pwd)

by_pip() {
    "$root/.venv/bin/python" -m pip --python "$python" install --quiet --disable-pip-version-check --require-hashes -r "$1"
}

if [ ! -x "$root/.venv/bin/uv" ]; then
    alone=$(mktemp)
    awk '/^[a-z]/ { its = /^uv==/ } its' "$root/requirements.lock" >"$alone"
    by_pip "$alone" || echo "uv could not be installed" >&2
    rm "$alone"
fi
"$root/.venv/bin/uv" pip install --quiet --no-cache --python "$python" --require-hashes -r "$lock" || by_pip "$lock"
