#!/bin/sh
# Make the virtual environment $1 with the Python $2 (empty: the newest of 3.11 to 3.13, else a python3 that is newer).
set -eu
venv=$1 python=${2:-} seen=""
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

for name in ${python:-python3.13 python3.12 python3.11 python3 python}; do
    found=$(command -v "$name" 2>/dev/null) || continue
    if "$found" -c "$new_enough" 2>/dev/null; then
        python=$found
        break
    fi
    seen="$seen $found ($("$found" --version 2>&1 || true))"
    python=""
done
if [ -z "$python" ] || ! command -v "$python" >/dev/null; then
    echo "Python 3.11 or newer is needed. Found:${seen:- no Python}. Install one, or name it: make PYTHON=/path/to/python" >&2
    exit 1
fi
version=$("$python" -c 'import platform; print(platform.python_version())')
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=python${version%.*}-venv
    echo "$python ($version) has no module venv: apt install $package (Debian, Ubuntu), or name another: make PYTHON=…" >&2
    exit 1
fi
echo "1/4 $venv with $python ($version)"
"$python" -m venv "$venv"
