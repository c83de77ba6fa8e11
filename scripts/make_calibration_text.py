#!/usr/bin/env python3
"""Makes data/calibration-mix.txt, the default calibration text: the default model's own texts in many genres (data/calibration-prompts.txt), this
project's own sources and documents, and a public-domain novel (data/moby-excerpt.txt), cut in pieces and dealt in turn. Run once; the result is committed.

usage: scripts/make_calibration_text.py [MODEL.gguf]
"""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / ".deps/llama/bin/llama-completion"
MODEL = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / ".deps/model/SmolLM2-135M-Instruct.Q4_1.gguf")
OWN = ["docs/architecture.md", "kvaq/cache/page_table.cc", "kvaq/plan/preset.cc", "docs/formats.md", "scripts/bootstrap.sh", "kvaq/attention/reference.cc"]
PIECE = 1200       # characters
N_TOKENS = 320     # generated per prompt


def generated():
    """One text per prompt, sampled with a fixed seed."""
    texts = []
    for number, line in enumerate((ROOT / "data/calibration-prompts.txt").read_text().splitlines()):
        prompt = line.replace("\\n", "\n")
        result = subprocess.run([PROGRAM, "-m", MODEL, "-p", prompt, "-n", str(N_TOKENS), "-c", "1024", "-no-cnv", "--temp", "0.9", "--top-p", "0.95", "--seed", str(number + 1), "--no-warmup"],
                                capture_output=True, check=True)
        texts.append(result.stdout.decode(errors="ignore").replace("[end of text]", "").strip("\n"))
        print(f"{number + 1}: {len(texts[-1])} characters", file=sys.stderr)
    return texts


def pieces(text):
    """Cut at the end of a line or a sentence."""
    out = []
    while len(text) > PIECE:
        cut = max(text.rfind("\n", 0, PIECE), text.rfind(". ", 0, PIECE) + 1)
        cut = cut if cut > PIECE // 2 else PIECE
        out.append(text[:cut])
        text = text[cut:]
    return out + [text]


novel = pieces((ROOT / "data/moby-excerpt.txt").read_text())
own = [piece for name in OWN for piece in pieces((ROOT / name).read_text())[:8]]
mixed = []
texts = generated()
for i in range(len(texts)):
    mixed.append(texts[i * 7 % len(texts)])  # genres in turn: the statistics read the beginning, the probes what follows
    if i < len(own):
        mixed.append(own[i])
    mixed.append(novel[2 * i % len(novel)])
(ROOT / "data/calibration-mix.txt").write_text("\n\n".join(mixed) + "\n")
