#!/usr/bin/env bash
# build/packages/kvaq-*.whl: Python bindings with the program, the drop-in and llama.cpp inside. The platform is manylinux of this machine's
# glibc: build on Debian 12 for glibc 2.36 and newer.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "package_wheel: error: $*" >&2; exit 1; }

# KVAQ_PACKAGE_TREE: a build tree to package as it is.
built=${KVAQ_PACKAGE_TREE:-build/package}
[ -n "${KVAQ_PACKAGE_TREE:-}" ] || scripts/package_build.sh
tree=build/wheel
rm -rf $tree && mkdir -p $tree build/packages
cp -r packaging/python/. $tree/
cmake --install "$built" --prefix $tree/kvaq/prefix --component runtime --strip >/dev/null
# Wheels keep no symbolic links. OpenMP's runtime is not part of every system, so it comes with it.
lib=$tree/kvaq/prefix/lib/kvaq
find $tree/kvaq/prefix -type l | while read -r link; do cp --remove-destination "$(readlink -f "$link")" "$link"; done
gomp=$(ldd $lib/llama.cpp/lib/libggml-cpu.so.0 | awk '/libgomp/ { print $3 }')
[ -n "$gomp" ] && cp -L "$gomp" $lib/llama.cpp/lib/libgomp.so.1
KVAQ_WHEEL_VERSION=$(sed -n 's/^project(kvaq VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
KVAQ_WHEEL_PLATFORM=manylinux_$(ldd --version | sed -n '1s/.* \([0-9]*\)\.\([0-9]*\)$/\1_\2/p')_$(uname -m)
export KVAQ_WHEEL_VERSION KVAQ_WHEEL_PLATFORM
[ -x .deps/venv/bin/pip ] || python3 -m venv .deps/venv
rm -f build/packages/kvaq-*.whl
.deps/venv/bin/pip wheel -q --disable-pip-version-check --no-deps -w build/packages $tree || fail "pip cannot build the wheel. Check the network (setuptools is fetched) and pip's settings"
rm -rf $tree
for wheel in build/packages/kvaq-*.whl; do printf '%s: %s bytes\n' "$wheel" "$(stat -c %s "$wheel")"; done
