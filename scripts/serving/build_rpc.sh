#!/usr/bin/env bash
# Builds llama.cpp's RPC backend and ggml-rpc-server (-DGGML_RPC=ON, which bootstrap.sh leaves off) from the pinned source, for
# scripts/serving/rpc.py. Only ggml is built again: llama-server asks it at run time whether it has an RPC backend, so the programs and
# libllama of .deps/llama are copied. usage: scripts/serving/build_rpc.sh [FOLDER]     (out/llama-rpc; a few minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-out/llama-rpc}
source=$(echo .deps/src/*/vendor/llama.cpp)
[ -e "$source/CMakeLists.txt" ] && [ -e .deps/build-llama/CMakeCache.txt ] || { echo "build_rpc: error: no llama.cpp in .deps. Run scripts/bootstrap.sh first" >&2; exit 1; }
mkdir -p "$folder"
# The instruction sets of the build that is there, so that both give the same bits.
mapfile -t flags < <(grep -E '^GGML_(NATIVE|SSE42|F16C|FMA|BMI2|AVX[A-Z0-9_]*):BOOL=' .deps/build-llama/CMakeCache.txt | sed 's/^/-D/')
# shellcheck disable=SC2016
cmake -G Ninja -S "$source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON "${flags[@]}" -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib' >"$folder/build.log" 2>&1 && ninja -C "$folder/build" ggml-rpc-server >>"$folder/build.log" 2>&1 || {
    tail -20 "$folder/build.log" >&2
    echo "build_rpc: error: ggml with RPC does not build; the whole log is $folder/build.log" >&2
    exit 1
}
rm -rf "$folder/bin" "$folder/lib"
cp -a .deps/llama/bin .deps/llama/lib "$folder/"
cp -a "$folder"/build/bin/libggml*.so* "$folder/lib/"
cp "$folder/build/bin/ggml-rpc-server" "$folder/bin/"
echo "build_rpc: $folder/bin"
