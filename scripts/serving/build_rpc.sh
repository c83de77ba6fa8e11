#!/usr/bin/env bash
# Builds the pinned llama.cpp once more with its RPC backend (-DGGML_RPC=ON, which bootstrap.sh leaves off) for scripts/serving/rpc.py:
# llama-server and ggml-rpc-server. usage: scripts/serving/build_rpc.sh [FOLDER]     (out/llama-rpc; about 10 minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-out/llama-rpc}
source=$(echo .deps/src/*/vendor/llama.cpp)
[ -e "$source/CMakeLists.txt" ] && [ -e .deps/build-llama/CMakeCache.txt ] || { echo "build_rpc: error: no llama.cpp in .deps. Run scripts/bootstrap.sh first" >&2; exit 1; }
# The instruction sets of the build that is there, so that both give the same bits.
mapfile -t flags < <(grep -E '^GGML_(NATIVE|SSE42|F16C|FMA|BMI2|AVX[A-Z0-9_]*):BOOL=' .deps/build-llama/CMakeCache.txt | sed 's/^/-D/')
# shellcheck disable=SC2016
cmake -G Ninja -S "$source" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON "${flags[@]}" -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib' >"$folder.log" 2>&1 && ninja -C "$folder" llama-server ggml-rpc-server >>"$folder.log" 2>&1 || {
    tail -20 "$folder.log" >&2
    echo "build_rpc: error: llama.cpp with RPC does not build; the whole log is $folder.log" >&2
    exit 1
}
echo "build_rpc: $folder/bin"
