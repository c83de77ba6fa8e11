#!/usr/bin/env bash
# Builds the core for 64-bit ARM and runs the tests of quantization, kernels and cache under qemu: NEON against the double reference. About 3 minutes on 2 cores.
# Exits with 77 (skipped) where the cross compiler or qemu is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static (scripts/bootstrap.sh installs both).
set -euo pipefail
cd "$(dirname "$0")/.."
for program in aarch64-linux-gnu-g++ qemu-aarch64-static; do
    command -v "$program" >/dev/null || { echo "neon_test: skipped: no $program (apt-get install g++-aarch64-linux-gnu qemu-user-static)"; exit 77; }
done
cmake --preset neon "$@" >build-neon.log 2>&1 || { tail -20 build-neon.log; exit 1; }
ninja -C build/neon kvaq_quant_tests kvaq_attention_tests kvaq_cache_tests >build-neon.log 2>&1 || { grep -E "error|FAILED" build-neon.log | head -20; exit 1; }
rm -f build-neon.log
run() {
    local tests=$1
    shift
    qemu-aarch64-static "build/neon/bin/kvaq_${tests}_tests" --gtest_brief=1 "$@"
}
run quant
run attention
# One preset of each kind of codec: their kernels' every width is tested above and by Tile.*.
run cache --gtest_filter="Tile*$(printf ':*EqualsTheReference*/%s' 0 3 4 6 9 10 11 14)"
