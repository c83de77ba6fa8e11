#!/usr/bin/env bash
# Quality per bit: measured plans of five budgets beside llama.cpp's cache types, TurboQuant's scheme (k<b>v<b>-lm) and the same with trellis codes and sinks, on a text that
# calibration has not seen; the floor is f16 in batches of 3, with keys and values off by 2^-12, and through our kernels (plan f16). All bytes are counted at the context that is scored.
# usage: scripts/quality_table.sh MODEL.gguf NAME [TEXT]     writes results/quality-NAME.md and .json
# Variables: BUDGETS (2.13 2.5 3.13 4.13 5.5), CTX (4096), CHUNKS (4), BATCH (512), STATS (out/NAME.stats.gguf, made if it is not there)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/quality_table.sh MODEL.gguf NAME [TEXT]" >&2; exit 1; }
model=$1 name=$2 text=${3:-data/wiki-excerpt.txt}
. scripts/table_parts.sh
CTX=${CTX:-4096}
stats=${STATS:-out/$name.stats.gguf}
calibrated "$model" "$stats"
plans=
for bits in ${BUDGETS:-2.13 2.5 3.13 4.13 5.5}; do
    "$KVAQ" plan -m "$model" --stats "$stats" --budget "${bits}bits" -c "$CTX" -o "out/$name-$bits.plan.gguf" | grep -E "^verdict|^in f16|effective bits"
    plans+=out/$name-$bits.plan.gguf,
done
"$KVAQ" eval -m "$model" -f "$text" -c "$CTX" --chunks "${CHUNKS:-4}" -b "${BATCH:-512}" --plan "${plans}f16,k2v2-lm,k3v3-lm,k4v4-lm,k2v2-tcq-s4,k3v3-tcq-s4,k4v4-tcq-s4" --types q8_0,q5_1,q4_0 --perturbed \
    --json "results/quality-$name.json" --md "results/quality-$name.md"
