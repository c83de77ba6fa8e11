#!/usr/bin/env bash
# Retrieval at long context: one number (passkey), eight numbers (needle) and copying, of measured plans of three budgets beside llama.cpp's f16 and q4_0 on the same texts.
# usage: scripts/retrieval_table.sh MODEL.gguf NAME     writes results/retrieval-NAME.md and .json; finished items are kept in out/retrieval-NAME.items.jsonl,
# so an interrupted run goes on where it stopped.
# Variables: CTX (8192), BUDGETS (2.25 3.25 4.25), ITEMS (passkey=3,needle=1,copy=2), STATS (out/NAME.stats.gguf, made if it is not there)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { echo "usage: scripts/retrieval_table.sh MODEL.gguf NAME" >&2; exit 1; }
model=$1 name=$2
. scripts/table_parts.sh
CTX=${CTX:-8192}
stats=${STATS:-out/$name.stats.gguf}
calibrated "$model" "$stats"
plans=
for bits in ${BUDGETS:-2.25 3.25 4.25}; do
    plan=out/$name-retrieval-$CTX-$bits.plan.gguf
    [ "$plan" -nt "$stats" ] ||
        "$KVAQ" plan -m "$model" --stats "$stats" --budget "${bits}bits" -c "$CTX" -o "$plan" | grep -E "^verdict|effective bits"
    plans+=$plan,
done
"$KVAQ" eval -m "$model" --task passkey,needle,copy --items "${ITEMS:-passkey=3,needle=1,copy=2}" --lengths "$CTX" --plan "${plans%,}" --types q4_0 \
    --results "out/retrieval-$name.items.jsonl" --json "results/retrieval-$name.json" --md "results/retrieval-$name.md"
