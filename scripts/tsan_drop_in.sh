#!/usr/bin/env bash
# The drop-in's threads under ThreadSanitizer: llama.cpp's own (ggml's thread pool, built with -fsanitize=thread and without OpenMP, whose barriers
# ThreadSanitizer does not see), the thread of metrics, the program's. usage: scripts/tsan_drop_in.sh [test filter]
# Builds build/tsan-ggml and build/tsan (20 CPU minutes); libllama itself is not instrumented: it runs in one thread.
set -euo pipefail
cd "$(dirname "$0")/.."
filter=${1:-'InProcess.SequenceOperations*:InProcess.SequencesThatShare*:InProcess.DamagedSlotFiles*:InProcess.AFullCache*:Shift.LogitsAfter*'}
sources=(.deps/src/*/vendor/llama.cpp)
[ -f "${sources[0]}/ggml/CMakeLists.txt" ] || { echo "tsan_drop_in.sh: error: no llama.cpp source in .deps/src. Run scripts/bootstrap.sh first" >&2; exit 1; }
cmake -S "${sources[0]}" -B build/tsan-ggml -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g -fsanitize=thread" -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g -fsanitize=thread" \
  -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
  -DLLAMA_BUILD_COMMON=OFF -DLLAMA_CURL=OFF ${KVAQ_LAUNCHER:+-DCMAKE_C_COMPILER_LAUNCHER=$KVAQ_LAUNCHER -DCMAKE_CXX_COMPILER_LAUNCHER=$KVAQ_LAUNCHER} >/dev/null
cmake --build build/tsan-ggml --target ggml ggml-base ggml-cpu
cmake --preset tsan -DKVAQ_LLAMA_DIR="$PWD/.deps/llama" ${KVAQ_LAUNCHER:+-DCMAKE_CXX_COMPILER_LAUNCHER=$KVAQ_LAUNCHER} >/dev/null
cmake --build build/tsan --target kvaq_llama_tests kvaq_e2e_tests
export LD_LIBRARY_PATH="$PWD/build/tsan-ggml/bin" TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1 ${TSAN_OPTIONS:-}"
build/tsan/bin/kvaq_llama_tests --gtest_filter='Metrics*'
# Metrics are read all the while.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
KVAQ_METRICS="127.0.0.1:$port" build/tsan/bin/kvaq_e2e_tests --gtest_filter="$filter" &
tests=$!
reads=0
while kill -0 "$tests" 2>/dev/null; do
  curl -sf "http://127.0.0.1:$port/metrics" | grep -q kvaq_cached_tokens && reads=$((reads + 1)) || sleep .2
done
wait "$tests"
echo "tsan_drop_in.sh: no race; metrics read $reads times"
[ "$reads" -gt 0 ]
