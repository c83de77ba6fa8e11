#!/usr/bin/env python3
"""Makes data/cache_analysis.json: what kvaq/stats/cache_analysis.cc must find on made-up rows, by NumPy alone.

python3 -m venv V && V/bin/pip install numpy && V/bin/python tests/golden/cache_analysis.py > data/cache_analysis.json
"""
import json

import numpy as np

N, D = 128, 64
BITS = [2, 3, 4, 5, 6, 7, 8]


def rows(seed, scale, outlier):
    """A linear congruential generator, so that the C++ test makes the same float16 numbers."""
    state, x = seed, np.empty((N, D))
    for t in range(N):
        for c in range(D):
            state = (state * 1103515245 + 12345) % 2**31
            x[t, c] = scale * ((state >> 16) / 16384 - 1)
            if c == 5:
                x[t, c] += outlier
    return x.astype(np.float16).astype(np.float64)


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def outward(x, to):
    """The float16 at or beyond x in the direction of `to`."""
    y = x.astype(np.float16)
    beyond = y.astype(np.float64) < x if to > 0 else y.astype(np.float64) > x
    return np.where(beyond, np.nextafter(y, np.float16(to)), y).astype(np.float64)


def mse(x, bits, group):
    """Round to nearest between a group's extremes; groups of 128 span two rows of 64. As the tile format has it, offset and scale
    are float16, rounded outward so that nothing is clipped, before the codes are chosen."""
    g = x.reshape(-1, group)
    low = outward(g.min(1, keepdims=True), -np.inf)
    scale = outward((g.max(1, keepdims=True) - low) / (2**bits - 1), np.inf)
    code = np.clip(np.round((g - low) / np.where(scale > 0, scale, 1)), 0, 2**bits - 1)
    return float(((g - (code * scale + low)) ** 2).mean())


def side(x, group_bits):
    s = np.linalg.svd(x, compute_uv=False)
    p = s**2 / (s**2).sum()
    out = {"singular_values": s.tolist(), "frobenius": float(np.linalg.norm(x)), "effective_rank": float(np.exp(-(p * np.log(p)).sum())),
           "mse": [mse(x, b, 64) for b in BITS], "mse_rotated": [mse(x @ hadamard(D), b, 64) for b in BITS],
           "mse_grouped": [mse(x, group_bits, g) for g in (32, 64, 128)], "bounds": []}
    for b in BITS:
        alpha = np.abs(x).max() / (2 ** (b - 1) - 1)
        e = x - alpha * np.round(x / alpha)
        factor = np.sqrt(x.size) / (2 * (2 ** (b - 1) - 1))
        out["bounds"].append([float(np.linalg.norm(e, 2)), float(np.linalg.norm(e)), float(factor * s[0]), float(factor * np.linalg.norm(x))])
    return out


print(json.dumps({"format": 1, "made_by": f"tests/golden/cache_analysis.py, NumPy {np.__version__}",
                  "key": side(rows(1, 4.0, 20.0), 4), "value": side(rows(2, 1.0, 0.0), 2)}))
