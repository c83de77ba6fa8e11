"""The Python package kvaq over a build tree: files as NumPy arrays, estimates, llama-cpp-python on the packed cache.

    python_bindings_test.py BUILD SOURCE MODEL       (with a Python that has NumPy; exit code 77: skipped)
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BUILD, SOURCE, MODEL = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
os.environ["KVAQ_PREFIX"] = str(BUILD)
os.environ.pop("KVAQ_PLAN", None)
sys.path.insert(0, str(SOURCE / "packaging/python"))
try:
    import numpy as np
except ModuleNotFoundError:
    print("skipped: this Python has no NumPy; scripts/fetch_llama_cpp_python.sh puts it in .deps/venv")
    sys.exit(77)
import kvaq  # noqa: E402


def cli(*args):
    return subprocess.run([str(BUILD / "bin/kvaq"), *map(str, args)], capture_output=True, text=True, check=True).stdout


def python(code, **env):
    """Another interpreter, since attach must come before the import of llama_cpp."""
    return subprocess.run([sys.executable, "-c", code, MODEL], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(SOURCE / "packaging/python"), "OMP_WAIT_POLICY": "passive", **env})


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="kvaq_python_")
        cls.plan = Path(cls.folder.name) / "x.plan.gguf"
        cls.stats = Path(cls.folder.name) / "x.stats.gguf"
        cli("plan", "-m", MODEL, "--policy", "uniform:k4v2-w64-s4", "-o", cls.plan)
        cli("calibrate", "-m", MODEL, "-c", 128, "--chunks", 2, "--no-probes", "-o", cls.stats)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_version(self):
        self.assertEqual("kvaq " + kvaq.__version__, cli("version").strip())

    def test_estimate_is_the_programs(self):
        found = kvaq.estimate(MODEL, ["f16", self.plan], n_ctx=4096, memory="64MiB")
        told = json.loads(cli("estimate", "-m", MODEL, "--plan", f"f16,{self.plan}", "-c", 4096, "--memory", "64MiB", "--json", "-"))
        self.assertEqual(found.bytes.tolist(), [row["bytes"] for row in told["plans"]])
        self.assertEqual(found.largest_context.tolist(), [row["largest_context"] for row in told["plans"]])
        self.assertGreater(found.largest_context[1], 4 * found.largest_context[0])
        self.assertEqual(kvaq.estimate(MODEL, n_ctx=512).largest_context, None)
        self.assertEqual(kvaq.estimate(MODEL, memory=64 * 2**20).largest_context.tolist(),
                         kvaq.estimate(MODEL, memory="64M").largest_context.tolist())

    def test_plan(self):
        plan = kvaq.read_plan(self.plan)
        self.assertEqual((plan.window, plan.sinks, plan.tile_tokens), (64, 4, 64))
        self.assertEqual(plan.key_bits.shape, (30, 3))
        self.assertTrue((plan.key_bits == 4).all() and (plan.value_bits == 2).all())
        self.assertTrue(math.isnan(plan.predicted_kl))
        self.assertEqual(plan.layer.tolist(), list(range(30)))

    def test_stats(self):
        stats = kvaq.read_stats(self.stats)
        self.assertEqual(stats.key_norm.shape, (30, 3))
        self.assertEqual(stats.n_tokens, 256)
        self.assertTrue(np.isnan(stats.key_damage).all(), "no probes were made")
        second = stats.tensor(7, 1, "k2")
        self.assertEqual(second.shape, (64, 64))
        np.testing.assert_allclose(second, second.T)
        np.testing.assert_allclose(np.sqrt(np.trace(second)), stats.key_norm[7, 1])
        np.testing.assert_allclose(np.sqrt(np.trace(stats.tensor(7, 1, "v2"))), stats.value_norm[7, 1])
        self.assertEqual(stats.tensor(7, 1, "k1").shape, (64,))
        tiles = stats.tensor(7, 1, "k_tiles")
        self.assertEqual(tiles.shape[1:], (64, 64))
        self.assertTrue(0.3 < np.sqrt((tiles**2).sum(-1).mean()) / stats.key_norm[7, 1] < 3)
        with self.assertRaisesRegex(kvaq.Error, "tensor l7.h1.nothing"):
            stats.tensor(7, 1, "nothing")
        with self.assertRaisesRegex(kvaq.Error, "no layer 99"):
            stats.tensor(99, 0, "k2")

    def test_eval(self):
        path = SOURCE / "results/quality-smollm2-135m.json"
        found = kvaq.read_eval(path)
        rows = json.loads(path.read_text())["rows"]
        self.assertEqual(found.name, [row["name"] for row in rows])
        self.assertEqual(found.mean_kl.tolist(), [row["mean_kl"]["value"] for row in rows])
        self.assertEqual(found.perplexity_error.tolist(), [row["perplexity"]["standard_error"] for row in rows])
        self.assertEqual(found.same_top[0], 1)
        self.assertTrue(np.isnan(found.predicted_kl[0]) or found.predicted_kl[0] is None or "predicted_kl" in rows[0])

    def test_suite(self):
        path = SOURCE / "results/suite-smollm2-135m.json"
        found = kvaq.read_suite(path)
        told = json.loads(path.read_text())
        self.assertEqual(found.cache, [cache["name"] for cache in told["caches"]])
        self.assertEqual(found.effective_bits["depth"].shape, (len(found.cache),))
        kl = [one for one in found.metrics if one.task == "depth" and "KL" in one.metric]
        self.assertTrue(kl and all(np.isnan(one.mean[0]) for one in kl), "the reference has no distance to itself")
        task = next(task for task in told["tasks"] if task["name"] == "hellaswag")
        accuracy = next(one for one in found.metrics if one.task == "hellaswag" and one.metric == task["metrics"][0]["name"])
        for i, cache in enumerate(task["metrics"][0]["groups"][0]["caches"]):
            self.assertEqual(accuracy.mean[i], cache["mean"]["value"])
        self.assertTrue(np.isnan(accuracy.p[0]) and (accuracy.p[1:] <= 1).all())

    def test_errors_say_what_was_wanted(self):
        for call, things in [
            (lambda: kvaq.read_plan("/no/such.plan.gguf"), ["/no/such.plan.gguf"]),
            (lambda: kvaq.read_plan(self.stats), ["wanted plan", "found stats", "kvaq plan"]),
            (lambda: kvaq.read_stats(self.plan), ["wanted stats", "found plan", "kvaq calibrate"]),
            (lambda: kvaq.read_stats(SOURCE / "README.md"), ["GGUF"]),
            (lambda: kvaq.read_eval(self.plan), [str(self.plan), "kvaq eval"]),
            (lambda: kvaq.read_suite(SOURCE / "results/quality-smollm2-135m.json"), ["kvaq.suite", "found kvaq.eval"]),
            (lambda: kvaq.estimate(MODEL, ["k9v9"]), ["k9v9"]),
            (lambda: kvaq.estimate("/no/such.gguf"), ["/no/such.gguf"]),
            (lambda: kvaq.estimate(MODEL, memory="many"), ["many", "512MiB"]),
            (lambda: kvaq.attach("nonsense"), ["nonsense"]),
        ]:
            with self.assertRaises(kvaq.Error) as caught:
                call()
            for thing in things:
                self.assertIn(thing, str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))

    def test_a_missing_library_is_said(self):
        said = python("import kvaq", KVAQ_PREFIX="/no/such/prefix")
        self.assertEqual(said.returncode, 1)
        self.assertIn("/no/such/prefix/lib/kvaq/llama-cpp-python", said.stderr)
        self.assertIn("KVAQ_PREFIX", said.stderr)


@unittest.skipIf(subprocess.run([sys.executable, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('llama_cpp') is None)"],
                                check=False).returncode, "no llama-cpp-python: scripts/fetch_llama_cpp_python.sh")
class LlamaCppPython(unittest.TestCase):
    def test_is_served_by_the_plan(self):
        said = python("""
import sys, kvaq
kvaq.attach("k4v4-rot")
from llama_cpp import Llama
def answer():
    llama = Llama(sys.argv[1], n_ctx=1024, flash_attn=True, verbose=False)
    text = llama.create_completion("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", max_tokens=64, temperature=0)["choices"][0]["text"]
    size = kvaq.cache_bytes(llama)
    llama.close()
    return text, size
packed, packed_size = answer()
kvaq.attach("f16")
f16, f16_size = answer()
kvaq.detach()
plain, plain_size = answer()
assert " 13, 14, 15" in packed, packed
assert f16 == plain, (f16, plain)
assert 0 < packed_size < f16_size and plain_size == 0, (packed_size, f16_size, plain_size)
""")
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertIn("kvaq: plan k4v4-rot", said.stderr)

    def test_refuses_an_imported_llama_cpp(self):
        said = python("import llama_cpp, kvaq; kvaq.attach('k4v4-rot')", LLAMA_CPP_LIB_PATH=str(BUILD / "lib/kvaq/llama.cpp/lib"))
        self.assertEqual(said.returncode, 1)
        self.assertIn("llama_cpp is imported already", said.stderr)
        self.assertIn("before the first import", said.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
