#!/usr/bin/env bash
# Makes the Python package llama-cpp-python importable in .deps/venv without building a second llama.cpp: its Python files are in
# the source that bootstrap.sh unpacked, found through a .pth file; the few packages it imports come pinned from pip. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=0.3.36
PACKAGES="numpy==2.4.6 typing-extensions==4.16.0 diskcache==5.6.3 jinja2==3.1.6 MarkupSafe==3.0.4"

fail() { echo "fetch_llama_cpp_python: error: $*" >&2; exit 1; }

source=$PWD/.deps/src/llama_cpp_python-$VERSION
[ -e "$source/llama_cpp/__init__.py" ] || fail "no llama-cpp-python $VERSION in .deps/src. Run scripts/bootstrap.sh first"
source=$(cd "$source" && pwd -P)
stamp=.deps/venv/.llama-cpp-python
wanted="$source $PACKAGES"
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && { echo "fetch_llama_cpp_python: it is there"; exit 0; }
[ -x .deps/venv/bin/pip ] || python3 -m venv .deps/venv
echo "fetch_llama_cpp_python: installing $PACKAGES"
# shellcheck disable=SC2086
.deps/venv/bin/pip install -q --disable-pip-version-check --only-binary :all: $PACKAGES ||
    fail "cannot install $PACKAGES. Check the network and pip's settings (pip config list), then run this again"
echo "$source" >"$(.deps/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/llama-cpp-python.pth"
echo "$wanted" >"$stamp"
echo "fetch_llama_cpp_python: .deps/venv/bin/python can import llama_cpp; it needs LLAMA_CPP_LIB_PATH, see examples/llama_cpp_python.py"
