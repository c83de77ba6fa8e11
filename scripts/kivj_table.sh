#!/usr/bin/env bash
# The paper's grids on a real model: all pairs of 1, 2, 4, 6 and 8 bits, and those of 2 and 4 bits with K, V or both rotated, beside llama.cpp's types. Interrupted, it goes on
# where it stopped. About 45 rows of CHUNKS x 1024 tokens: half an hour on one core for SmolLM2.
# usage: scripts/kivj_table.sh MODEL.gguf NAME     writes results/kivj-NAME.md and .json
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] || { echo "usage: scripts/kivj_table.sh MODEL.gguf NAME" >&2; exit 1; }
plans=f16
for k in 1 2 4 6 8; do
    for v in 1 2 4 6 8; do plans+=,k${k}v$v-s4; done
done
for rotation in -rotk -rotv -rot; do
    for bits in k4v4 k4v2 k2v4 k2v2; do plans+=,$bits$rotation-s4; done
done
"${KVAQ:-build/release/bin/kvaq}" eval -m "$1" -f data/wiki-excerpt.txt -c 1024 -b "${BATCH:-128}" --chunks "${CHUNKS:-4}" --plan "$plans" \
    -t "${THREADS:-2}" --types q8_0,q5_1,q4_0 --json "results/kivj-$2.json" --md "results/kivj-$2.md"
