#!/usr/bin/env bash
# The paper's tables and figures on our two models, results/paper.md and results/paper-*.svg, from kvaq analyze, the KiVj grids (scripts/kivj_table.sh) and K4V2 with
# other group sizes. What is already measured (results/kivj-NAME.json, results/groups-NAME.json) is taken as it is.
# usage: scripts/paper_page.sh [NAME=MODEL.gguf,STATS.gguf ...]     (smollm2-135m and gemma-3-270m where scripts/bootstrap.sh and fetch_gemma.sh put them)
set -euo pipefail
cd "$(dirname "$0")/.."
KVAQ=${KVAQ:-build/release/bin/kvaq}
PACKAGES="matplotlib==3.11.2 contourpy==1.3.3 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1 packaging==26.4 pillow==13.0.0 pyparsing==3.3.3 python-dateutil==4.0.0"
[ $# -gt 0 ] || set -- smollm2-135m=.deps/model/SmolLM2-135M-Instruct.Q4_1.gguf,out/smollm2-135m.stats.gguf gemma-3-270m=.deps/model/gemma-3-270m-q4_k_m.gguf,out/gemma-3-270m.stats.gguf
[ -x .deps/venv/bin/python ] || python3 -m venv .deps/venv
stamp=.deps/venv/paper-packages
# shellcheck disable=SC2086
[ "$(cat $stamp 2>/dev/null)" = "$PACKAGES" ] ||
    { .deps/venv/bin/pip install -q --disable-pip-version-check --only-binary :all: numpy==2.4.6 $PACKAGES && echo "$PACKAGES" >$stamp; } ||
    { echo "paper_page.sh: error: cannot install $PACKAGES. Check the network and pip's settings (pip config list), then run this again" >&2; exit 1; }
mkdir -p out results
pages=()
for one in "$@"; do
    name=${one%%=*} files=${one#*=}
    model=${files%,*} stats=${files#*,}
    [ -e "$stats" ] || "$KVAQ" calibrate -m "$model" -o "$stats"
    "$KVAQ" analyze -m "$model" --stats "$stats" --json "out/analysis-$name.json" >/dev/null
    [ -e "results/kivj-$name.json" ] || scripts/kivj_table.sh "$model" "$name"
    if [ ! -e "results/groups-$name.json" ]; then
        plans=
        for k in 32 64 128; do for v in 32 64 128; do plans+=,k4v2-gk$k-gv$v-s4; done; done
        "$KVAQ" eval -m "$model" -f data/wiki-excerpt.txt -c 1024 -b "${BATCH:-128}" --chunks "${CHUNKS:-4}" --no-control --plan "${plans#,}" \
            --json "results/groups-$name.json" --md "results/groups-$name.md"
    fi
    pages+=("$name=out/analysis-$name.json,results/kivj-$name.json,results/groups-$name.json")
done
.deps/venv/bin/python scripts/paper_page.py results/paper.md "${pages[@]}"
