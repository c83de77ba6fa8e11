#!/bin/sh
# Speed beside llama.cpp: rounds of kvaq, llama.cpp f16 and llama.cpp q4_0 in turn, so that a busy machine slows all alike; medians over the
# rounds and their quotients go to the result file, the same as JSON (for kvaq report --speed) beside it. Run it on a machine with nothing else to do.
# Variable DEPTHS: 0,4096,8192.
#   scripts/speed_table.sh [rounds] [plan] [model.gguf] [result.md]
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-5}
plan=${2:-k4v4-rot-s4}
model=${3:-.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf}
result=${4:-results/speed-smollm2-135m.md}
flags="-m $model -p 0 -n 32 -d ${DEPTHS:-0,4096,8192} -r 1 -t 2 -o csv"
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
i=0
while [ "$i" -lt "$rounds" ]; do
    # shellcheck disable=SC2086
    build/release/bin/kvaq bench --plan "$plan" $flags | sed "s/^/kvaq;/" >>"$rows"
    # shellcheck disable=SC2086
    .deps/llama/bin/llama-bench $flags | sed "s/^/f16;/" >>"$rows"
    # shellcheck disable=SC2086
    .deps/llama/bin/llama-bench $flags -ctk q4_0 -ctv q4_0 -fa 1 | sed "s/^/q4_0;/" >>"$rows"
    i=$((i + 1))
done
python3 - "$rows" "$plan" "$flags" "$rounds" "${result%.md}.json" "${DEPTHS:-}" >"$result" <<'PY'
import collections
import csv
import json
import statistics
import sys

path, plan, flags, rounds, json_path, depths = sys.argv[1:]
command = f"scripts/speed_table.sh {rounds} {plan}"
if depths:
    command = f"DEPTHS={depths} {command}"
speeds = collections.defaultdict(list)
header = None
for line in open(path):
    who, _, text = line.rstrip("\n").partition(";")
    fields = next(csv.reader([text]), [])
    if "avg_ts" in fields:
        header = fields
    elif header is not None and len(fields) == len(header):
        row = dict(zip(header, fields))
        speeds[who, int(row["n_depth"])].append(float(row["avg_ts"]))
cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
print(f"# Decode speed, tokens/s\n\nCPU: {cpu}. Flags of every run: `{flags}`. {rounds} rounds, the three in turn; medians (smallest to largest).\n")
print(f"Made by `{command}`.\n")
print(f"| depth | kvaq {plan} | llama.cpp f16 | llama.cpp q4_0 | kvaq / f16 | kvaq / q4_0 |\n|---|---|---|---|---|---|")
table = []
for depth in sorted({d for _, d in speeds}):
    cells = [speeds[who, depth] for who in ("kvaq", "f16", "q4_0")]
    if not all(cells):
        sys.exit(f"no speeds at depth {depth}: {[len(c) for c in cells]}")
    median = [statistics.median(c) for c in cells]
    table.append({"depth": depth, "speeds": [{"median": m, "min": min(c), "max": max(c)} for m, c in zip(median, cells)]})
    texts = [f"{m:.1f} ({min(c):.1f} to {max(c):.1f})" for m, c in zip(median, cells)]
    print(f"| {depth} | {' | '.join(texts)} | {median[0] / median[1]:.2f} | {median[0] / median[2]:.2f} |")
with open(json_path, "w", encoding="utf-8") as file:
    json.dump({"schema_version": 1, "kind": "kvaq.speed", "command": command, "cpu": cpu, "flags": flags, "rounds": int(rounds), "unit": "tokens/s",
               "columns": [f"kvaq {plan}", "llama.cpp f16", "llama.cpp q4_0"], "rows": table}, file, indent=1)
    file.write("\n")
PY
cat "$result"
