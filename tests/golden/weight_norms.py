#!/usr/bin/env python3
"""Makes data/weight_norms.json: norms of W_K and W_V by NumPy's SVD, independent of kvaq (which takes eigenvalues of a Gram matrix
and ggml's dequantizers).

python3 -m venv V && V/bin/pip install numpy gguf && V/bin/python tests/golden/weight_norms.py MODEL.gguf... > data/weight_norms.json
"""
import json
import os
import sys

import gguf
import numpy as np

out = {"format": 1, "made_by": f"tests/golden/weight_norms.py, NumPy {np.__version__}", "models": {}}
for path in sys.argv[1:]:
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    rows = {"w_k_frobenius": [], "w_v_frobenius": [], "w_k_spectral": [], "w_v_spectral": []}
    layer = 0
    while f"blk.{layer}.attn_k.weight" in tensors:
        for side in "kv":
            t = tensors[f"blk.{layer}.attn_{side}.weight"]
            w = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
            s = np.linalg.svd(w, compute_uv=False)
            rows[f"w_{side}_frobenius"].append(float(np.linalg.norm(w)))
            rows[f"w_{side}_spectral"].append(float(s[0]))
        layer += 1
    rows["qk_norm"] = "blk.0.attn_k_norm.weight" in tensors
    out["models"][os.path.basename(path)] = rows
print(json.dumps(out, indent=1))
