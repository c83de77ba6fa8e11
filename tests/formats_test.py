"""docs/formats.md against the program: what tests/formats_reader.py reads by that page is what kvaq says and computes.

    formats_test.py BUILD SOURCE MODEL
"""

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

BUILD, SOURCE, MODEL = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.path[:0] = [str(SOURCE / "tests"), str(SOURCE / "packaging/python")]
os.environ["KVAQ_PREFIX"] = str(BUILD)
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ.pop("KVAQ_PLAN", None)
import formats_reader as reader  # noqa: E402
import kvaq  # noqa: E402

# Every coding, width and basis; sides and heads of one plan are alike, so several plans are needed.
PRESETS = ["k4v2-rot-s4", "k3v6-sym", "k1v8-kchan-g32", "k1.58v5-vchan-rotk", "k2v1-sym-g128", "k8v1.58-sym", "k6v3-hqq", "k5v4-quanto",
           "k3v4-lm-w64-s2", "k16v4", "k4v3-tcq", "k2v6-tcq-s4"]
TEXT = "The library was built in 1911. " * 60


def cli(*args):
    return subprocess.run([str(BUILD / "bin/kvaq"), *map(str, args)], capture_output=True, text=True, check=True).stdout


class Formats(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="kvaq_formats_")
        cls.folder = Path(cls.temporary.name)
        cls.stats = cls.folder / "m.stats.gguf"
        cli("calibrate", "-m", MODEL, "-c", 256, "--chunks", 1, "--no-probes", "-o", cls.stats)
        cls.plans = {}
        for name in PRESETS:
            cls.plans[name] = cls.folder / f"{name}.plan.gguf"
            cli("plan", "-m", MODEL, "--policy", f"uniform:{name}", "-o", cls.plans[name])
        cls.plans["transform"] = cls.folder / "t.plan.gguf"
        cli("plan", "-m", MODEL, "--stats", cls.stats, "--policy", "transform:k3.3v2.6", "-o", cls.plans["transform"])
        cls.plans["sorted"] = cls.folder / "s.plan.gguf"
        cli("plan", "-m", MODEL, "--stats", cls.stats, "--policy", "transform:k3.3v2.6-sorted", "-o", cls.plans["sorted"])

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_plans(self):
        for name, path in self.plans.items():
            with self.subTest(name):
                plan = reader.read_plan(path)
                self.assertEqual(hashlib.sha256(reader.canonical_text(plan).encode()).hexdigest(), plan["sha256"])
                said = json.loads(cli("inspect", path, "--json", "-"))
                for key in ("name", "architecture", "model_name", "fingerprint", "tile_tokens", "window", "sinks", "bytes_per_token"):
                    self.assertEqual(plan[key], said[key])
                for ours, theirs in zip(plan["layers"], said["layers"], strict=True):
                    self.assertEqual([(h["key"]["text"], h["value"]["text"]) for h in ours["heads"]],
                                     [(h["key"], h["value"]) for h in theirs["heads"]])

    def test_a_changed_plan_fails_the_checksum(self):
        plan = reader.read_plan(self.plans["transform"])
        plan["window"] += 1
        self.assertNotEqual(hashlib.sha256(reader.canonical_text(plan).encode()).hexdigest(), plan["sha256"])

    def test_stats(self):
        keys, tensors = reader.read_gguf(self.stats)
        self.assertEqual((keys["general.type"], keys["kvaq.stats.schema_version"]), ("kvaq-stats", 8))
        shapes = np.array(keys["kvaq.stats.layers"]).reshape(-1, 6)
        said = kvaq.read_stats(self.stats)
        self.assertEqual(shapes[:, 0].tolist(), said.layer.tolist())
        self.assertEqual(tensors["probes"].tolist(), [-1e9] * (2 * len(shapes)))
        for layer, _, n_kv_heads, dk, dv, _ in shapes[::7]:
            for head in range(n_kv_heads):
                of = lambda what: tensors[f"l{layer}.h{head}.{what}"]  # noqa: E731, B023
                for what, dim in (("k2", dk), ("q2", dk), ("k_metric", dk), ("v2", dv), ("v_metric", dv)):
                    square = of(what).reshape(dim, dim)
                    np.testing.assert_allclose(square, square.T)
                    np.testing.assert_array_equal(square, said.tensor(layer, head, what))
                np.testing.assert_allclose(np.sqrt(np.trace(of("k2").reshape(dk, dk))), said.key_norm[layer, head])
                self.assertEqual(of("k_tiles").size, keys["kvaq.stats.n_sample_tiles"] * 64 * dk)
                self.assertEqual(of("v1").size, dv)

    def slot(self, plan):
        """A slot file of TEXT under the plan, saved by llama-cpp-python in another process; (what the reader finds, the plan)."""
        path = self.folder / "slot.bin"
        code = """
import ctypes, sys, kvaq
kvaq.attach(sys.argv[2])
import llama_cpp
llama = llama_cpp.Llama(sys.argv[1], n_ctx=1024, flash_attn=True, verbose=False)
tokens = llama.tokenize(sys.argv[3].encode())[:330]
llama.eval(tokens)
array = (llama_cpp.llama_token * len(tokens))(*tokens)
assert llama_cpp.llama_state_seq_save_file(llama.ctx, sys.argv[4].encode(), 0, array, len(tokens)) > 0
"""
        subprocess.run([sys.executable, "-c", code, MODEL, str(plan), TEXT, str(path)], check=True, capture_output=True,
                       env={**os.environ, "PYTHONPATH": str(SOURCE / "packaging/python")})
        return reader.read_slot(path, reader.read_plan(plan))

    def test_slot_files_snapshots_and_tiles(self):
        f16 = self.folder / "f16.plan.gguf"
        cli("plan", "-m", MODEL, "--policy", "uniform:f16", "-o", f16)
        tokens, pages, segments, layers = self.slot(f16)
        self.assertEqual(len(tokens), 330)
        self.assertEqual([page["flags"] & 1 for page in pages], [1] * 5 + [0])
        self.assertEqual([(s["base"] + s["begin"], s["base"] + s["end"]) for s in segments],
                         [(64 * i, min(64 * i + 64, 330)) for i in range(6)])
        # The first layer's keys and values come before any attention, so they do not depend on the cache.
        exact = [page["tiles"] for page in layers[0][:5]]
        for name, path in self.plans.items():
            with self.subTest(name):
                plan = reader.read_plan(path)
                told, pages, _, layers = self.slot(path)
                self.assertEqual(told.tolist(), tokens.tolist())
                for side, codec_name in enumerate(("key", "value")):
                    codec = plan["layers"][0]["heads"][0][codec_name]
                    bits = np.mean(codec["bits"]) if "fit" in codec else float(codec.get("bits", 16))
                    signal = error = 0
                    for page, (content, wanted) in enumerate(zip(layers[0], exact)):
                        if "tiles" not in content:
                            continue
                        x = wanted[side]
                        error += ((content["tiles"][side] - x) ** 2).sum()
                        signal += ((x - x.mean(axis=(1, 2), keepdims=True)) ** 2).sum()
                        if page == 0 and plan["sinks"]:
                            np.testing.assert_array_equal(content["sinks"][side], x[:, : plan["sinks"]])
                    self.assertGreater(signal, 0)
                    # Any mistake in the place of a code, scale or offset makes the error as large as the signal.
                    limit = {1: 1.0, 1.58: 1.0, 2: 0.8}.get(bits, 0.2 if bits < 4 else 0.05)
                    self.assertLess(error / signal, limit, f"{codec_name}: {codec['text']}")

    def test_the_reader_notices_misplaced_codes(self):
        """The limits above tell a right layout from a wrong one."""
        rng = np.random.default_rng(1)
        raw = rng.integers(0, 256, 64 * 64 * 4 // 8, dtype=np.uint8).tobytes()
        keys = reader.read_codes(reader.Bytes(raw), 4, "k", 64, 64)
        values = reader.read_codes(reader.Bytes(raw), 4, "v", 64, 64)
        self.assertGreater(np.mean(keys != values), 0.8)
        self.assertEqual(np.bincount(keys.ravel()).tolist(), np.bincount(values.ravel()).tolist())


if __name__ == "__main__":
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    unittest.main(argv=sys.argv[:1], verbosity=2)
