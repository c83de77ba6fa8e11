#!/usr/bin/env bash
# Installs the pinned OpenAI client in .deps/venv, for scripts/serving/openai_client.py. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/../.."
requirements=scripts/serving/client-requirements.txt
stamp=.deps/venv/.serving-clients
cmp -s "$requirements" "$stamp" && { echo "fetch_clients: it is there"; exit 0; }
[ -x .deps/venv/bin/pip ] || python3 -m venv .deps/venv
echo "fetch_clients: installing $(grep -v '^#' "$requirements" | tr '\n' ' ')"
.deps/venv/bin/pip install -q --disable-pip-version-check --only-binary :all: -r "$requirements" || {
    echo "fetch_clients: error: cannot install $requirements. Check the network and pip's settings (pip config list), then run this again" >&2
    exit 1
}
cp "$requirements" "$stamp"
