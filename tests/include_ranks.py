#!/usr/bin/env python3
"""Checks that a file includes only its own folder and lower ranks (docs/architecture.md), and that the core sees no llama.cpp."""
import pathlib
import re
import sys

RANKS = ["base", "quant", "stats", "plan", "attention", "cache", "cuda", "llama", "eval", "report", "cli"]
# The tile format is the codecs' format: it ranks with quant although it stands beside the cache.
TILE = re.compile(r"kvaq/cache/tile(_codes|_codes-inl|_decode|_levels)?\.h")
CORE = {"base", "quant", "plan", "attention", "stats", "cache", "cuda"}

root = pathlib.Path(sys.argv[1])
errors = []
for path in sorted((root / "kvaq").glob("*/*")):
    if path.suffix not in {".h", ".cc", ".cu", ".cuh"} or path.name.endswith("_test.cc"):
        continue
    folder = path.parent.name
    for number, line in enumerate(path.read_text().splitlines(), 1):
        own = re.match(r'#include "kvaq/(\w+)/', line)
        if own and not TILE.search(line) and RANKS.index(own[1]) > RANKS.index(folder):
            errors.append(f"{path.relative_to(root)}:{number}: {folder} must not include {own[1]}")
        if folder in CORE and re.match(r'#include [<"](llama|ggml|gguf)', line):
            errors.append(f"{path.relative_to(root)}:{number}: the core must not see llama.cpp")
print("\n".join(errors) or "include ranks hold")
sys.exit(1 if errors else 0)
