#!/usr/bin/env bash
# Makes build/llama-portable of .deps/llama, for packages: the same llama.cpp, but its matrix products (libggml-cpu, the only part that is
# built for this very processor) built for every x86-64, and in lib/glibc-hwcaps for x86-64-v3 (AVX2) and -v4 (AVX-512); the loader takes
# the best by itself. Other processors: one build for the architecture's baseline. Idempotent. About 5 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=build/llama-portable
fail() { echo "portable_llama: error: $*" >&2; exit 1; }

[ -e .deps/llama/.stamp ] || fail "no llama.cpp in .deps/llama. Run scripts/bootstrap.sh first"
source=$(echo "$PWD"/.deps/src/*/vendor/llama.cpp)
[ -e "$source/CMakeLists.txt" ] || fail "no source of llama.cpp in .deps/src. Run scripts/bootstrap.sh first"
stamp="$(cut -d' ' -f1,2 .deps/llama/.stamp) 1"
[ "$(cat "$OUT/.stamp" 2>/dev/null)" = "$stamp" ] && { echo "portable_llama: $OUT is there"; exit 0; }

# build <name> <flags...>: build/llama-portable-<name>/bin/libggml-cpu.so.0
build() {
    local tree=build/llama-portable-$1
    shift
    echo "portable_llama: building $tree (a minute or two; log: $tree.log)"
    # shellcheck disable=SC2016
    { cmake -G Ninja -S "$source" -B "$tree" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF "$@" \
        "-DCMAKE_C_FLAGS=-ffile-prefix-map=$source=llama.cpp" "-DCMAKE_CXX_FLAGS=-ffile-prefix-map=$source=llama.cpp" \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
        -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib;$ORIGIN/../..' &&
        ninja -C "$tree" ggml-cpu; } >"$tree.log" 2>&1 || { tail -20 "$tree.log" >&2; fail "llama.cpp does not build; the whole log is $tree.log"; }
}

mkdir -p build
rm -rf "$OUT.part" && mkdir -p "$OUT.part"
cp -a .deps/llama/bin .deps/llama/lib .deps/llama/include "$OUT.part/"
off="-DGGML_SSE42=OFF -DGGML_AVX=OFF -DGGML_AVX2=OFF -DGGML_BMI2=OFF -DGGML_FMA=OFF -DGGML_F16C=OFF"
if [ "$(uname -m)" = x86_64 ]; then
    # shellcheck disable=SC2086
    build base $off
    build v3
    build v4 -DGGML_AVX512=ON
    for level in v3 v4; do
        install -D -m 644 "build/llama-portable-$level/bin/libggml-cpu.so.0" "$OUT.part/lib/glibc-hwcaps/x86-64-$level/libggml-cpu.so.0"
    done
else
    build base
fi
file=$(basename "$(readlink -f "$OUT.part/lib/libggml-cpu.so.0")")
install -m 755 "build/llama-portable-base/bin/libggml-cpu.so.0" "$OUT.part/lib/$file"
find "$OUT.part/bin" "$OUT.part/lib" -type f -exec strip --strip-unneeded {} +
echo "$stamp" >"$OUT.part/.stamp"
rm -rf "$OUT" && mv "$OUT.part" "$OUT"
echo "portable_llama: $OUT"
