#!/usr/bin/env bash
# What each technique gives, in KL at equal bytes: plans of one budget, each without one of them, in one run on a text that calibration has not seen.
# usage: scripts/ablation_table.sh MODEL.gguf NAME [TEXT]     writes results/ablation-NAME.md and .json
# Variables: BITS (3.13), CTX (4096), CHUNKS (4), STATS (out/NAME.stats.gguf) and UNTURNED_STATS (out/NAME-unturned.stats.gguf, `kvaq calibrate --key-period 0`); both are made if
# they are not there
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/ablation_table.sh MODEL.gguf NAME [TEXT]" >&2; exit 1; }
model=$1 name=$2 text=${3:-data/wiki-excerpt.txt}
. scripts/table_parts.sh
BITS=${BITS:-3.13}
CTX=${CTX:-4096}
stats=${STATS:-out/$name.stats.gguf}
calibrated "$model" "$stats"
unturned=${UNTURNED_STATS:-out/$name-unturned.stats.gguf}
calibrated "$model" "$unturned" --key-period 0
plans=
# make_plan NAME STATS flags...: a plan of the budget
make_plan() {
    local title=$1 from=$2 file
    shift 2
    file=out/$name-ablation-${title// /-}.plan.gguf
    "$KVAQ" plan -m "$model" --stats "$from" --budget "${BITS}bits" -c "$CTX" --name "$title" -o "$file" "$@" | grep -E "effective bits"
    plans+=$file,
}
make_plan "all" "$stats"
make_plan "without turning keys back" "$unturned"
make_plan "without trellis codes" "$stats" --policy measured-codebook
make_plan "without a window in f16" "$stats" --window 0
make_plan "without sinks in f16" "$stats" --sinks 0
make_plan "nothing fitted" "$stats" --policy measured-affine
bits=${BITS%.*}
make_plan "same bits in every layer and head" "$stats" --policy "transform:k${bits}v${bits}"
"$KVAQ" eval -m "$model" -f "$text" -c "$CTX" --chunks "${CHUNKS:-4}" --plan "${plans}k${bits}v${bits}-tcq-s4,k${bits}v${bits}-tcq,k${bits}v${bits}-lm" --types q4_0 \
    --json "results/ablation-$name.json" --md "results/ablation-$name.md"
