#!/usr/bin/env python3
"""Makes data/norms/authors_plans.json by running the authors' own allocators on the norm files in data/norms.

git clone of mohsenhariri/spectral-kv at 2b860ec5, then from the root of this repository:
    python3 tests/golden/authors_plans.py CLONE
"""
import json
import pathlib
import sys
import types
import warnings

clone = sys.argv[1]
pkg = types.ModuleType("kvq")  # their kvq/__init__.py imports torch, their kvq/const.py imports hqq: neither is needed here
pkg.__path__ = [clone + "/kvq"]
const = types.ModuleType("kvq.const")
const._SUPPORTED_BITS = const._DEFAULT_GROUP_SIZES = ()  # every range is given below
helpers = types.ModuleType("kvq.helpers")
sys.modules.update({"kvq": pkg, "kvq.const": const, "kvq.helpers": helpers})
root = pathlib.Path("data/norms")
helpers.load_kv_norms = lambda name, score: json.loads((root / ("spectral_norm" if score else "frobenius_norm") / (name + ".json")).read_text())
from kvq.bit_pattern import bit_pattern
from kvq.group_pattern import group_pattern
warnings.simplefilter("ignore")
out = {"format": 1, "made_by": "bit_pattern() and group_pattern() of mohsenhariri/spectral-kv at 2b860ec5, Python %d.%d, on these norm files" % sys.version_info[:2], "bits": [], "groups": []}
for model in sorted(p.stem for p in (root / "frobenius_norm").glob("*.json")):
    for score in (0, 1):
        for rng in ([1, 1.58, 2, 4, 6, 8], [1, 1.58, 2, 3, 3.5, 4, 5, 6, 8]):
            for budget in (2, 3, 4, 2.5):
                r = bit_pattern(model, budget=budget, bit_range=rng, score=score)
                out["bits"].append({"model": model, "score": score, "range": rng, "budget": budget, **r})
        for groups, budget in (([16,32,64,128,256], 64), ([32,64,128], 64), ([32,64,128], 48), ([32,64,128], 16), ([32,64,128], 256)):
            r = group_pattern(model, group_size_budget=budget, group_sizes=groups, score=score)
            out["groups"].append({"model": model, "score": score, "range": groups, "budget": budget, **r})
lines = ['{"format": 1, "made_by": %s,' % json.dumps(out["made_by"])]
for k in ("bits", "groups"):
    lines.append('"%s": [' % k); lines.append(",\n".join(json.dumps(x, separators=(",", ":")) for x in out[k])); lines.append("]" + ("," if k == "bits" else "}"))
(root / "authors_plans.json").write_text("\n".join(lines) + "\n")
