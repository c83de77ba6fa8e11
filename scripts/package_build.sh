#!/usr/bin/env bash
# The build that packages are made of: build/package, against build/llama-portable. Called by package_deb.sh and package_wheel.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/portable_llama.sh
cmake --preset package >build/package.log 2>&1 && cmake --build --preset package >>build/package.log 2>&1 || {
    tail -30 build/package.log >&2
    echo "package_build: error: it does not build; the whole log is build/package.log" >&2
    exit 1
}
