#!/usr/bin/env bash
# The paper's first table on a real model: K4V4, K4V2, K2V4, K2V2, each plain and with K, V or both rotated, beside llama.cpp's types.
# usage: scripts/kivj_table.sh MODEL.gguf NAME     writes results/kivj-NAME.md and .json
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] || { echo "usage: scripts/kivj_table.sh MODEL.gguf NAME" >&2; exit 1; }
plans=f16
for rotation in "" -rotk -rotv -rot; do
    for bits in k4v4 k4v2 k2v4 k2v2; do plans+=,$bits$rotation-s4; done
done
"${KVAQ:-build/release/bin/kvaq}" eval -m "$1" -f data/wiki-excerpt.txt -c 1024 -b "${BATCH:-128}" --chunks "${CHUNKS:-4}" --plan "$plans" \
    --types q8_0,q5_1,q4_0 --json "results/kivj-$2.json" --md "results/kivj-$2.md"
