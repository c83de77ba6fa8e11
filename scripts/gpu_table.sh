#!/usr/bin/env bash
# Layers on a GPU: tokens/s of llama-bench and KL of llama-perplexity, llama.cpp's caches beside ours on the GPU and on the host, in turn.
#   scripts/gpu_table.sh LLAMA_BIN LIBRARY MODEL TEXT OUT.jsonl [PLAN...]
# LLAMA_BIN: llama.cpp's programs, built with CUDA from the pinned source; LIBRARY: libkvaq-llama.so. Environment: ROUNDS=3, DEPTHS=0,8192,32768,
# PROMPT=512, THREADS, CHUNKS=2.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,5p' "$0" >&2; exit 1; }
bin=$1 library=$(realpath "$2") model=$3 text=$4 out=$5
shift 5
plans=("${@:-k4v4-rot-s4}")
threads=${THREADS:-$(nproc)}
export LD_LIBRARY_PATH=$bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$out"

# run <plan or -> <device> <command...>: under a plan, or llama.cpp alone
run() {
    local plan=$1 device=$2
    shift 2
    if [ "$plan" = - ]; then "$@"; else LD_PRELOAD=$library KVAQ_PLAN=$plan KVAQ_KV_DEVICE=$device "$@"; fi
}
# bench <name> <plan> <device> <flags...>
bench() {
    local name=$1 plan=$2 device=$3
    shift 3
    run "$plan" "$device" "$bin/llama-bench" -m "$model" -ngl 99 -fa 1 -t "$threads" -r 1 -o jsonl -d "${DEPTHS:-0,8192,32768}" -p "${PROMPT:-512}" -n 32 "$@" \
        2>"$work/err" | sed "s/^{/{\"name\": \"$name\", /" >>"$out" || { tail -3 "$work/err" >&2; exit 1; }
}
# kl <name> <plan> <device> <flags...>
kl() {
    local name=$1 plan=$2 device=$3
    shift 3
    run "$plan" "$device" "$bin/llama-perplexity" -m "$model" -ngl 99 -f "$text" -c 2048 -b 2048 -ub 512 --chunks "${CHUNKS:-2}" -fa on -t "$threads" \
        --kl-divergence-base "$work/base" "$@" >"$work/log" 2>&1 || { tail -3 "$work/log" >&2; exit 1; }
    printf '%-40s %s\n' "$name" "$(grep -a -h 'Mean  *KLD\|Same top' "$work/log" | tr -s ' ' | paste -sd' ')"
}

kl "llama.cpp f16 (reference)" - -
kl "llama.cpp f16 again" - - --kl-divergence
for plan in f16 "${plans[@]}"; do
    for device in gpu cpu; do kl "$(basename "$plan") $device" "$plan" "$device" --kl-divergence; done
done
for round in $(seq "${ROUNDS:-3}"); do
    echo "round $round" >&2
    bench "llama.cpp f16" - -
    bench "llama.cpp q4_0" - - -ctk q4_0 -ctv q4_0
    for plan in f16 "${plans[@]}"; do bench "$(basename "$plan") gpu" "$plan" gpu; done
done
python3 - "$out" <<'PY'
import collections, json, statistics, sys
rows = collections.defaultdict(list)
for line in open(sys.argv[1]):
    r = json.loads(line)
    rows[r["n_depth"], r["n_prompt"], r["n_gen"], r["name"]].append(r["avg_ts"])
print(f"{'depth':>6} {'prompt':>6} {'new':>4}  {'cache':24} {'tokens/s':>9} {'least..most':>18}")
for (depth, prompt, new, name), speeds in sorted(rows.items(), key=lambda row: (row[0][2], row[0][0])):
    print(f"{depth:6} {prompt:6} {new:4}  {name:24} {statistics.median(speeds):9.1f} {min(speeds):9.1f}..{max(speeds):.1f}")
PY
