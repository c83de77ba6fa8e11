#!/usr/bin/env bash
# What the basis of a transform codec is worth, in KL: keys in the eigenbasis, in the Hadamard matrix and in a basis for the layer's output; values likewise.
# usage: scripts/basis_trials.sh MODEL.gguf NAME [TEXT]     writes results/basis-trials-NAME.md and .json
# Variables: CTX (4096), CHUNKS (2), THREADS (2), STATS (out/NAME.stats.gguf; made if it is not there), TRIALS (build/release/bin/basis_trials, which `make bench` builds)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/basis_trials.sh MODEL.gguf NAME [TEXT]" >&2; exit 1; }
model=$1 name=$2 text=${3:-data/wiki-excerpt.txt}
. scripts/table_parts.sh
stats=${STATS:-out/$name.stats.gguf}
calibrated "$model" "$stats"
"${TRIALS:-build/release/bin/basis_trials}" -m "$model" --stats "$stats" -f "$text" -c "${CTX:-4096}" --chunks "${CHUNKS:-2}" -t "${THREADS:-2}" --out "results/basis-trials-$name"
