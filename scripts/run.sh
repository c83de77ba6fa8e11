#!/usr/bin/env bash
# The main job from one end to the other, with the program that `make run` built: measure a model, plan its cache for a budget,
# compare the plan with llama.cpp's own cache types, answer a prompt through the packed cache. Leaves everything in out/, out/report.html to begin with.
# Variables: MODEL, BUDGET, PROMPT, THREADS; KVAQ = the kvaq program.
set -euo pipefail
cd "$(dirname "$0")/.."

KVAQ=${KVAQ:-build/release/bin/kvaq}
MODEL=${MODEL:-.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf}
BUDGET=${BUDGET:-3.25bits}
PROMPT=${PROMPT:-The capital of France is Paris. The capital of Italy is}
THREADS=${THREADS:-$(nproc)}
name=$(basename "$MODEL" .gguf)
stats=out/$name.stats.gguf
plan=out/$name-$BUDGET.plan.gguf
result=out/$name-$BUDGET.eval

step() { printf '\n== %s\n' "$*"; }
mkdir -p out
started=$SECONDS

step "1/4 measuring keys, values and queries of $name (about 5 minutes, once)"
if [ "$stats" -nt "$MODEL" ] && "$KVAQ" inspect "$stats" >/dev/null 2>&1; then
    echo "$stats is there (delete it to measure again)"
else
    "$KVAQ" calibrate -m "$MODEL" -t "$THREADS" -o "$stats"
fi

# A result is kept while what it was made from, this program included, is older.
fresh() { [ -e "$1" ] && [ "$1" -nt "$2" ] && [ "$1" -nt "$KVAQ" ]; }

step "2/4 planning bits per layer, side and head for $BUDGET, and measuring the plan (half a minute)"
if fresh "$plan" "$stats"; then
    echo "$plan is there (delete it to plan again)"
else
    at=(-c 4096)
    case $BUDGET in *@*) at=() ;; esac  # a budget of bytes names its context
    "$KVAQ" plan -m "$MODEL" --stats "$stats" --budget "$BUDGET" "${at[@]}" --check -t "$THREADS" -o "$plan"
fi

step "3/4 comparing with llama.cpp's own cache types on a text that the plan has not seen (about 5 minutes)"
if fresh "$result.json" "$plan"; then
    cat "$result.md"
else
    "$KVAQ" eval -m "$MODEL" -f data/wiki-excerpt.txt -c 4096 --chunks 1 --no-control -t "$THREADS" \
        --plan "$plan,k4v4-lm-s4,k4v2-rot-s4,k2v4-rot-s4" --types q8_0,q5_1,q4_0 --json "$result.json" --md "$result.md"
fi

step "4/4 answering a prompt with an unmodified llama-completion on the packed cache"
"$KVAQ" run --plan "$plan" -m "$MODEL" -t "$THREADS" -c 2048 -n 48 --temp 0 -no-cnv -p "$PROMPT" 2>out/run.log | tee out/answer.txt || {
    tail -5 out/run.log >&2
    exit 1
}
grep '^kvaq:' out/run.log | grep -v '^kvaq: layers' || { echo "run.sh: error: the packed cache was not used; see out/run.log" >&2; exit 1; }

"$KVAQ" report -m "$MODEL" --plan "$plan" --stats "$stats" --eval "$result.json" -o out/report.html --md out/report.md >/dev/null
python3 scripts/summary.py "$result.json" "$plan" out/answer.txt "$((SECONDS - started))"
