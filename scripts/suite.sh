#!/usr/bin/env bash
# The evaluation suite: f16, q8_0, q4_0, k4v2 plain and rotated, our f16 and measured plans of 2.25, 3.25 and 4.25 bits, on the same items in the same run.
# usage: scripts/suite.sh MODEL.gguf NAME [full|quick]     writes results/suite-NAME.md and .json; finished items are kept in out/suite-NAME.items.jsonl,
# so an interrupted run goes on where it stopped, and more ITEMS later take only what is new. full: about an hour on one core, half of it depth.
# Variables: DATA, the folder of the data sets, or each alone: HELLASWAG (hellaswag_val_full.txt as llama-perplexity reads it, .bz2 too),
# GSM8K (gsm8k_test.jsonl of openai/grade-school-math), TEXT (wiki.test.raw, WikiText-2 test); TASKS, ITEMS, LENGTHS, SHOTS, TOKENS instead of the size's;
# STATS (out/NAME.stats.gguf, made if it is not there), BATCH (512; 128 where the vocabulary is large), THREADS, KVAQ.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: scripts/suite.sh MODEL.gguf NAME [full|quick]" >&2; exit 1; }
model=$1 name=$2 size=${3:-full}
. scripts/table_parts.sh
DATA=${DATA:-data}
HELLASWAG=${HELLASWAG:-$DATA/hellaswag_val_full.txt.bz2}
GSM8K=${GSM8K:-$DATA/gsm8k_test.jsonl}
TEXT=${TEXT:-$DATA/wiki.test.raw}
stats=${STATS:-out/$name.stats.gguf}
for file in "$HELLASWAG" "$GSM8K" "$TEXT"; do
    [ -e "$file" ] || {
        echo "suite.sh: error: a data set is missing: wanted HELLASWAG, GSM8K and TEXT (or DATA, their folder), found no '$file'" >&2
        exit 1
    }
done
if [ "${HELLASWAG##*.}" = bz2 ]; then
    [ -e out/hellaswag_val_full.txt ] || bunzip2 -kc "$HELLASWAG" >out/hellaswag_val_full.txt.part
    [ -e out/hellaswag_val_full.txt ] || mv out/hellaswag_val_full.txt.part out/hellaswag_val_full.txt
    HELLASWAG=out/hellaswag_val_full.txt
fi
case $size in
full) tasks=depth,hellaswag,needle,json,passkey,copy,diverge,gsm8k,chat
      items=depth=1,hellaswag=40,gsm8k=3,passkey=3,needle=1,copy=4,json=6,diverge=5,chat=3
      lengths=depth=8192,passkey=2048,needle=2048,copy=512,json=1024
      shots=gsm8k=8 tokens=gsm8k=160 ;;
quick) tasks=hellaswag,depth,needle,copy,passkey,json,diverge,gsm8k,chat
       items=hellaswag=40,depth=1,needle=2,copy=4,passkey=5,json=8,diverge=6,gsm8k=4,chat=4
       lengths=depth=2048,needle=2048,copy=512,passkey=1024,json=1024,diverge=512,chat=512
       shots=gsm8k=4 tokens=diverge=64,gsm8k=120 ;;
*) echo "suite.sh: error: unknown size: wanted full or quick, found '$size'" >&2; exit 1 ;;
esac
if [ -z "${TASKS:-}" ] && ! grep -qa 'tokenizer\.chat_template' "$model"; then
    echo "suite.sh: '$model' holds no chat template: the task chat is left out" >&2
    tasks=${tasks/,chat/}
fi
tasks=${TASKS:-$tasks}
# Of "task=value,..." the values of the tasks that are run.
only() {
    local kept= one
    for one in ${1//,/ }; do
        case $one in *=*) case ,$tasks, in *,"${one%%=*}",*) kept+=,$one ;; esac ;; *) kept+=,$one ;; esac
    done
    printf %s "${kept#,}"
}
more=()
add() { [ -z "$2" ] || more+=("$1" "$2"); }
add --items "$(only "${ITEMS:-$items}")"
add --lengths "$(only "${LENGTHS:-$lengths}")"
add --shots "$(only "${SHOTS:-$shots}")"
add --max-tokens "$(only "${TOKENS:-$tokens}")"
add --task-data "$(only "hellaswag=$HELLASWAG,gsm8k=$GSM8K")"
calibrated "$model" "$stats"
plans=f16,k4v2,k4v2-rot
for bits in 2.25 3.25 4.25; do
    plan=out/$name-suite-$bits.plan.gguf
    [ "$plan" -nt "$stats" ] ||
        "$KVAQ" plan -m "$model" --stats "$stats" --budget "${bits}bits" -c 4096 -o "$plan" | grep -E "^verdict|effective bits"
    plans+=,$plan
done
"$KVAQ" eval -m "$model" --task "$tasks" -f "$TEXT" "${more[@]}" \
    --plan "$plans" --types q8_0,q4_0 -b "${BATCH:-512}" -t "${THREADS:-$(nproc)}" \
    --results "out/suite-$name.items.jsonl" --json "results/suite-$name.json" --md "results/suite-$name.md"
