#!/bin/sh
# Speed beside llama.cpp: rounds of kvaq, llama.cpp f16 and llama.cpp q4_0 in turn, so that a busy machine slows all alike; medians over the
# rounds and their quotients go to the result file, the same as JSON (for kvaq report --speed) beside it. Run it on a machine with nothing else to do.
# Variables: DEPTHS=0,4096,8192 (decode), PREFILL=512,8192 (prompt lengths; 0: none).
#   scripts/speed_table.sh [rounds] [plan] [model.gguf] [result.md]
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-5}
plan=${2:-k4v4-rot-s4}
model=${3:-.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf}
result=${4:-results/speed-smollm2-135m.md}
depths=${DEPTHS:-0,4096,8192}
prefill=${PREFILL:-512,8192}
decode_flags="-m $model -p 0 -n 32 -d $depths -r 1 -t 2 -o csv"
prefill_flags="-m $model -p $prefill -n 0 -r 1 -t 2 -o csv"
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# In turn: $1 flags.
in_turn() {
    # shellcheck disable=SC2086
    build/release/bin/kvaq bench --plan "$plan" $1 | sed "s/^/kvaq;/" >>"$rows"
    # shellcheck disable=SC2086
    .deps/llama/bin/llama-bench $1 | sed "s/^/f16;/" >>"$rows"
    # shellcheck disable=SC2086
    .deps/llama/bin/llama-bench $1 -ctk q4_0 -ctv q4_0 -fa 1 | sed "s/^/q4_0;/" >>"$rows"
}
i=0
while [ "$i" -lt "$rounds" ]; do
    in_turn "$decode_flags"
    [ "$prefill" = 0 ] || in_turn "$prefill_flags"
    i=$((i + 1))
done
python3 - "$rows" "$plan" "$decode_flags" "$prefill_flags" "$rounds" "${result%.md}.json" "DEPTHS=$depths PREFILL=$prefill" >"$result" <<'PY'
import collections
import csv
import json
import statistics
import sys

path, plan, decode_flags, prefill_flags, rounds, json_path, variables = sys.argv[1:]
command = f"{variables} scripts/speed_table.sh {rounds} {plan}"
decode = collections.defaultdict(list)
prefill = collections.defaultdict(list)
header = None
for line in open(path):
    who, _, text = line.rstrip("\n").partition(";")
    fields = next(csv.reader([text]), [])
    if "avg_ts" in fields:
        header = fields
    elif header is not None and len(fields) == len(header):
        row = dict(zip(header, fields))
        if int(row["n_gen"]) > 0:
            decode[int(row["n_depth"]), who].append(float(row["avg_ts"]))
        else:
            prefill[int(row["n_prompt"]), who].append(float(row["avg_ts"]))
cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
print(f"# Speed, tokens/s\n\nCPU: {cpu}. {rounds} rounds, the three in turn; medians (smallest to largest).\nMade by `{command}`.")


def print_table(title, what, flags, speeds):
    """Prints one table and returns its rows for the JSON file."""
    print(f"\n{title}. Flags of every run: `{flags}`.\n")
    print(f"| {what} | kvaq {plan} | llama.cpp f16 | llama.cpp q4_0 | kvaq / f16 | kvaq / q4_0 |\n|---|---|---|---|---|---|")
    rows = []
    for size in sorted({n for n, _ in speeds}):
        cells = [speeds[size, who] for who in ("kvaq", "f16", "q4_0")]
        if not all(cells):
            sys.exit(f"no speeds at {what} {size}: {[len(c) for c in cells]}")
        median = [statistics.median(c) for c in cells]
        rows.append({what: size, "speeds": [{"median": m, "min": min(c), "max": max(c)} for m, c in zip(median, cells)]})
        texts = [f"{m:.1f} ({min(c):.1f} to {max(c):.1f})" for m, c in zip(median, cells)]
        print(f"| {size} | {' | '.join(texts)} | {median[0] / median[1]:.2f} | {median[0] / median[2]:.2f} |")
    return rows


table = print_table("Decode", "depth", decode_flags, decode)
prompts = print_table("Prefill", "prompt", prefill_flags, prefill) if prefill else []
with open(json_path, "w", encoding="utf-8") as file:
    json.dump({"schema_version": 1, "kind": "kvaq.speed", "command": command, "cpu": cpu, "flags": decode_flags, "rounds": int(rounds), "unit": "tokens/s",
               "columns": [f"kvaq {plan}", "llama.cpp f16", "llama.cpp q4_0"], "rows": table, "prefill_flags": prefill_flags, "prefill": prompts}, file, indent=1)
    file.write("\n")
PY
cat "$result"
