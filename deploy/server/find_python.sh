#!/bin/sh
# Prints the Python interpreter to make the environments with: of those named, or of the usual names, the first that
# can also run the embedded Triton (3.11 or 3.12, with its shared library), else the first that can run Trident.
set -u
here=$(dirname "$0")

trident='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
triton='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'

[ $# -gt 0 ] || set -- python3.12 python3.11 python3 python3.14 python3.13
second_best=
for python in "$@"; do
    "$python" -c "$trident" 2>/dev/null || continue
    if "$python" -c "$triton" && ! "$python" "$here/probe.py" | grep -q '"libpython": null'; then
        echo "$python"
        exit
    fi
    [ -n "$second_best" ] || second_best=$python
done
if [ -n "$second_best" ]; then
    echo "$second_best"
    exit
fi
echo "Trident needs Python 3.11 or 3.12 with venv, and found none that works among: $*." >&2
echo "Install it (Debian, Ubuntu: apt install python3 python3-venv), or name one: PYTHON=/path/to/python3.12" >&2
exit 1
