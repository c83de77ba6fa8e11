#!/usr/bin/env bash
# What another kind of text costs a calibrated plan: plans of one budget, calibrated on prose alone and on the built-in mix, beside codecs that need no calibration, on five
# kinds of text that neither has seen.
# usage: scripts/shift_table.sh MODEL.gguf NAME     writes results/shift-NAME.md and .json
# Both plans keep the same tokens in f16 (4 sinks, the newest 64), so that only what calibration says of codecs differs.
# Variables: BITS (2.5), CTX (2048), STATS (of the built-in text, out/NAME.stats.gguf), PROSE_STATS (out/NAME-prose.stats.gguf); both are made if they are not there
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { echo "usage: scripts/shift_table.sh MODEL.gguf NAME" >&2; exit 1; }
model=$1 name=$2
. scripts/table_parts.sh
BITS=${BITS:-2.5}
CTX=${CTX:-2048}
mix=${STATS:-out/$name.stats.gguf}
prose=${PROSE_STATS:-out/$name-prose.stats.gguf}
calibrated "$model" "$mix"
calibrated "$model" "$prose" -f data/moby-excerpt.txt
"$KVAQ" plan -m "$model" --stats "$mix" --budget "${BITS}bits" -c "$CTX" --window 64 --sinks 4 --name "calibrated on the built-in mix" -o "out/$name-shift-mix.plan.gguf" | grep verdict
"$KVAQ" plan -m "$model" --stats "$prose" --budget "${BITS}bits" -c "$CTX" --window 64 --sinks 4 --name "calibrated on a novel" -o "out/$name-shift-prose.plan.gguf" | grep verdict
for text in encyclopedia:data/wiki-excerpt.txt:2 problems:data/gsm8k-excerpt.txt:2 code:data/python-excerpt.txt:2 chat:data/chat-excerpt.txt:1 German:data/german-excerpt.txt:1; do
    IFS=: read -r kind file chunks <<<"$text"
    "$KVAQ" eval -m "$model" -f "$file" -c "$CTX" --chunks "$chunks" --plan "out/$name-shift-mix.plan.gguf,out/$name-shift-prose.plan.gguf,k${BITS%.*}v${BITS%.*}-tcq-s4,k4v4-rot-s4" --types q4_0 --no-control \
        --json "out/$name-shift-$kind.json" >/dev/null
done
python3 - "$name" "$BITS" "$CTX" <<'PY'
import json, sys
name, bits, ctx = sys.argv[1:]
kinds = ["encyclopedia", "problems", "code", "chat", "German"]
runs = {kind: json.load(open(f"out/{name}-shift-{kind}.json")) for kind in kinds}
json.dump({"schema_version": 1, "kind": "kvaq.shift", "command": f"BITS={bits} CTX={ctx} scripts/shift_table.sh MODEL {name}", "texts": runs}, open(f"results/shift-{name}.json", "w"), indent=1)
rows = [row["name"] for row in runs[kinds[0]]["rows"]][1:]
with open(f"results/shift-{name}.md", "w") as out:
    out.write(f"Plans of {bits} bits calibrated on two texts, on texts of other kinds: mean KL (nats per token; plans: times that of the plan calibrated on the mix). "
              f"`BITS={bits} CTX={ctx} scripts/shift_table.sh MODEL {name}`\n\n| cache | bits/element | " + " | ".join(kinds) + " |\n|---|---|" + "---|" * len(kinds) + "\n")
    for name_of_row in rows:
        cells = []
        for kind in kinds:
            by_name = {row["name"]: row for row in runs[kind]["rows"]}
            kl = by_name[name_of_row]["mean_kl"]
            cells.append(f"{kl['value']:.4f} ± {kl['standard_error']:.4f}")
            if name_of_row == "calibrated on a novel":
                cells[-1] += f" ({kl['value'] / by_name['calibrated on the built-in mix']['mean_kl']['value']:.2f} x)"
        row = next(r for r in runs[kinds[0]]["rows"] if r["name"] == name_of_row)
        out.write(f"| {name_of_row} | {row['effective_bits']:.2f} | " + " | ".join(cells) + " |\n")
PY
cat "results/shift-$name.md"
