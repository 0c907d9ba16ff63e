#!/usr/bin/env bash
# Linux and macOS: makes the environment at the first start, chooses torch for the card that is found, opens the page.
# Usage: bash docs/install/start.sh [options of `sdlora webui`]
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ ! -x .venv/bin/sdlora ]; then
    if command -v uv >/dev/null; then
        uv venv -q --seed --python 3.11 .venv
    else
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "sdlora needs Python 3.10 or newer" >&2; exit 1; }
        python3 -m venv .venv
    fi
    if [ "$(uname)" = Linux ]; then
        # On Linux the package index's torch is for NVIDIA cards: gigabytes that a machine without one has no use for.
        if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then wheels=cu128; else wheels=cpu; fi
        export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-https://download.pytorch.org/whl/$wheels}"
    fi
    .venv/bin/python -m pip install -c constraints.txt -e '.[webui,8bit,prodigy]'
    .venv/bin/sdlora doctor --no-network || echo "(sdlora doctor names what doesn't work yet; the page starts all the same)"
fi
exec .venv/bin/sdlora webui "$@"
