#!/bin/sh
# Speed beside llama.cpp: kvaq bench with the depths and prompts of the goals (docs/benchmarks.md), on a machine with nothing else to do. The table goes to the result
# file, the numbers as JSON (for kvaq report --speed) beside it.
# Variables: DEPTHS=0,4096,8192 (decode), PREFILL=512,8192 (prompt lengths; 0: none), THREADS=2, KVAQ.
#   scripts/speed_table.sh [rounds] [plans] [model.gguf] [result.md]
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-5}
plans=${2:-k4v4-rot-s4}
model=${3:-.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf}
result=${4:-results/speed-smollm2-135m.md}
kvaq=${KVAQ:-build/release/bin/kvaq}
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
bench() { "$kvaq" bench -m "$model" --plan "$plans" --types f16,q8_0,q4_0 -r "$rounds" -t "${THREADS:-2}" "$@"; }
bench -p 0 -n 32 -d "${DEPTHS:-0,4096,8192}" --json "$part/decode.json" >"$part/decode.md"
[ "${PREFILL:-512,8192}" = 0 ] || bench -p "${PREFILL:-512,8192}" -n 0 -d 0 --json "$part/prefill.json" >"$part/prefill.md"
python3 - "$part" "${result%.md}.json" <<'PY'
import json
import pathlib
import sys

part = pathlib.Path(sys.argv[1])
table = json.loads((part / "decode.json").read_text())
if (part / "prefill.json").exists():
    prefill = json.loads((part / "prefill.json").read_text())
    table["prefill"], table["prefill_command"] = prefill["prefill"], prefill["command"]
pathlib.Path(sys.argv[2]).write_text(json.dumps(table, indent=1) + "\n")
PY
{
    printf '# Speed, tokens/s\n\nMade by `DEPTHS=%s PREFILL=%s scripts/speed_table.sh %s %s`.\n\n## Decode\n\n' "${DEPTHS:-0,4096,8192}" "${PREFILL:-512,8192}" "$rounds" "$plans"
    cat "$part/decode.md"
    [ ! -e "$part/prefill.md" ] || { printf '\n## Prefill\n\n'; cat "$part/prefill.md"; }
} >"$result"
cat "$result"
