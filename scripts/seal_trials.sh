#!/usr/bin/env bash
# What a gain per token is worth, and what feeding errors back or letting outlier tokens escape to f16 would be, in KL: one plan sealed in each way, and plans with as many
# bytes as it has without its gains, and as leave it room for the tokens that escape.
# usage: scripts/seal_trials.sh MODEL.gguf NAME [TEXT]     writes results/seal-trials-NAME-3bits.* and -2bits.*
# Variables: CTX (4096), CHUNKS (2), THREADS (2), STATS (out/NAME.stats.gguf; made if it is not there), TRIALS (build/release/bin/seal_trials, which `make bench` builds)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/seal_trials.sh MODEL.gguf NAME [TEXT]" >&2; exit 1; }
model=$1 name=$2 text=${3:-data/wiki-excerpt.txt}
. scripts/table_parts.sh
CTX=${CTX:-4096}
stats=${STATS:-out/$name.stats.gguf}
calibrated "$model" "$stats"
# try_budget BITS BITS_WITHOUT_GAINS BITS_WITH_ROOM
try_budget() {
    local plans= bits
    for bits in "$@"; do
        "$KVAQ" plan -m "$model" --stats "$stats" --budget "${bits}bits" -c "$CTX" --window 0 -o "out/$name-seal-$bits.plan.gguf" | grep -E "effective bits"
        plans+=out/$name-seal-$bits.plan.gguf,
    done
    "${TRIALS:-build/release/bin/seal_trials}" -m "$model" -f "$text" -c "$CTX" --chunks "${CHUNKS:-2}" -t "${THREADS:-2}" --plan "${plans%,}" --out "results/seal-trials-$name-${1%.*}bits"
}
try_budget 3.13 3.005 2.878  # at 64 channels gains take .125 bit, a token of 64 in f16 .252
try_budget 2.13 2.005 1.878
