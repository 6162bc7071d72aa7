#!/usr/bin/env bash
# Make .venv hold exactly requirements.lock and this package; do nothing if it already does.
set -euo pipefail
cd "$(dirname "$0")/.."

fingerprint() { # of everything that decides what .venv must hold, and where it lies
    { cat requirements.lock pyproject.toml; .venv/bin/python -VV; pwd; } | cksum
}

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

mkdir -p .venv
# Two at once would install over each other: the second waits. (.venv/.lock is taken by uv itself.)
if command -v flock >/dev/null; then exec 9>.venv/.setup-lock && flock 9; fi

if [ -f .venv/.installed ] && [ "$(fingerprint 2>/dev/null)" = "$(cat .venv/.installed)" ]; then
    exit 0
fi
# Removed first and written last: an interrupted installation is never taken for a finished one.
rm -f .venv/.installed
echo "Installing into .venv (about 6 GB on Linux with its GPU libraries; a few minutes the first time) ..."

python=${PYTHON:-python3}
uv=$(command -v uv || true)
if ! python_is_new_enough .venv/bin/python; then
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --allow-existing --python "${PYTHON:->=3.11}" .venv
    elif python_is_new_enough "$python"; then
        "$python" -m venv .venv
    else
        echo "$python is $("$python" -V 2>&1 || true), but saga-ray needs Python 3.11 or newer: install one, or name it with PYTHON=python3.12 make setup" >&2
        exit 2
    fi
fi

if [ -z "$uv" ]; then # uv installs several times faster than pip, which remains the last resort
    [ -x .venv/bin/pip ] || .venv/bin/python -m ensurepip >/dev/null
    if .venv/bin/python -m pip install --quiet "$(grep '^uv==' requirements.lock)"; then uv=.venv/bin/uv; fi
fi

export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
if [ -n "$uv" ]; then
    # Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch and the rest anew.
    "$uv" pip sync --compile-bytecode --python .venv/bin/python requirements.lock
    "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
else
    .venv/bin/python -m pip install --requirement requirements.lock
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
fi
.venv/bin/saga-ray --version >/dev/null
fingerprint >.venv/.installed.new
mv .venv/.installed.new .venv/.installed
echo "Ready: .venv holds saga-ray and all it needs; 'source .venv/bin/activate' puts it on the path."
