#!/usr/bin/env bash
# Attention alone beside llama.cpp's own (llama_attention_bench): one new token over 8192 cached ones, one thread pinned to one core, caches in random order.
# usage: scripts/attention_table.sh [REPETITIONS] [RESULT.md]     writes results/attention.md and google-benchmark's JSON beside it
# Variables: BENCH (build/release/bin/llama_attention_bench), CORE=0; FROM=FILE.json: only the page, of a run that was made before
set -euo pipefail
cd "$(dirname "$0")/.."
repetitions=${1:-5} result=${2:-results/attention.md}
bench=${BENCH:-build/release/bin/llama_attention_bench}
json=${result%.md}.json
if [ -n "${FROM:-}" ]; then
    cp "$FROM" "$json"
else
    taskset -c "${CORE:-0}" "$bench" --benchmark_enable_random_interleaving=true --benchmark_repetitions="$repetitions" --benchmark_min_time=0.2 \
        --benchmark_report_aggregates_only=true --benchmark_out="$json" >/dev/null
fi
python3 - "$json" "$repetitions" "$result" "$(LC_ALL=C lscpu | sed -n 's/^Model name: *//p')" <<'PY'
import json
import pathlib
import re
import sys

path, repetitions, result, cpu = sys.argv[1:]
run = json.loads(pathlib.Path(path).read_text())
rows = {}
for row in run["benchmarks"]:
    cache, shape, layers = row["run_name"].split("/")
    rows.setdefault((shape, int(layers.split("_")[0])), {}).setdefault(cache, {})[row["aggregate_name"]] = row["real_time"]
words = {"9x3x64": "SmolLM2-135M's heads: 9 query heads, 3 KV heads, 64 channels", "4x1x256": "gemma-3-270m's heads: 4 query heads, 1 KV head, 256 channels",
         "32x8x128": "Llama 3.1 8B's heads: 32 query heads, 8 KV heads, 128 channels"}
out = ["# Attention alone, 8192 tokens in the cache", "",
       f"{cpu}, one thread, medians of {repetitions} runs in random order (± their standard deviation), microseconds a layer; llama.cpp's GGML_OP_FLASH_ATTN_EXT over its cache types beside plans, on made-up numbers. "
       "4 layers fit a large L3, 30 do not everywhere. `measured`: trellis codes in sorted bases, as plans of 3.25 bits have them. Made by `scripts/attention_table.sh`.", ""]
for (shape, layers), caches in sorted(rows.items(), key=lambda item: (list(words).index(item[0][0]), item[0][1])):
    f16, q4_0 = caches["llama.cpp_f16"]["median"], caches["llama.cpp_q4_0"]["median"]
    out += [f"## {words[shape]}; {layers} layers in turn", "", "| cache | us a layer | x llama.cpp f16 | x llama.cpp q4_0 |", "|---|---|---|---|"]
    for cache, times in sorted(caches.items(), key=lambda item: item[1]["median"]):
        median = times["median"]
        out.append(f"| {re.sub('_', ' ', cache, count=1)} | {median / layers:.0f} ± {times['stddev'] / layers:.0f} | {f16 / median:.2f} | {q4_0 / median:.2f} |")
    out.append("")
pathlib.Path(result).write_text("\n".join(out))
PY
cat "$result"
