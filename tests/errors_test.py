"""What a newcomer gets wrong: exit code 1, nothing on stdout, one line on stderr that names what was wanted and found.

    errors_test.py KVAQ SOURCE MODEL
"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

KVAQ, SOURCE, MODEL = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]), str(Path(sys.argv[3]).resolve())
TEMPORARY = tempfile.TemporaryDirectory(prefix="kvaq_errors_")
FOLDER = Path(TEMPORARY.name)
TEXT = str(SOURCE / "data/wiki-excerpt.txt")
PLAN = str(FOLDER / "p.plan.gguf")
OUT = str(FOLDER / "out.gguf")


def kvaq(*args):
    return subprocess.run([KVAQ, *args], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300)


# arguments -> what the line must hold
WRONG = [
    ([], ["verb", "kvaq --help"]),
    (["paln"], ["paln", "Did you mean plan?"]),
    (["serv", "--plan", "k4v2"], ["Did you mean serve?"]),
    (["frobnicate"], ["frobnicate", "kvaq --help"]),
    (["--verison"], ["--verison", "--version"]),
    (["-m", MODEL, "estimate"], ["'-m'", "after the verb"]),
    (["plan"], ["--model", "kvaq plan --help"]),
    (["plan", "-m", MODEL], ["--budget 3.25bits"]),
    (["plan", "-m", MODEL, "--budget", "3bits"], ["--stats", "kvaq calibrate"]),
    (["plan", "-m", MODEL, "--stats", PLAN, "--budget", "3bits"], ["no statistics", "kvaq calibrate"]),
    (["plan", "-m", MODEL, "--stats", PLAN, "--budget", "3.25"], ["3.25bits", "'3.25'"]),
    (["plan", "-m", MODEL, "--stats", PLAN, "--budget", "512MiB"], ["512MiB@32768"]),
    (["plan", "-m", MODEL, "--frontier"], ["-f TEXT"]),
    (["plan", "-m", MODEL, "--frontier", "-f", TEXT, "-o", OUT], ["--frontier-out"]),
    (["plan", "-m", MODEL, "--frontier", "-f", TEXT, "-c", "512"], ["--ctx-size", "--check-ctx"]),
    (["plan", "-m", MODEL, "--policy", "uniform"], ["uniform:<preset>"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "--stats", PLAN], ["--stats", "uniform:k4v4"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "--head-weights", "output"], ["--head-weights", "measured"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "--frontier-out", OUT], ["--frontier-out", "--frontier"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "--check-ctx", "64"], ["--check-ctx", "-f TEXT"]),
    (["plan", "-m", MODEL, "--policy", "transform:k4v2.5junk"], ["k4v2.5junk", "transform:k4v2.5"]),
    (["plan", "-m", MODEL, "--policy", "transform:k4v2-w64"], ["transform:k4v2-w64"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "-c", "1073741825"], ["--ctx-size", "to 1073741824"]),
    (["plan", "-m", MODEL, "--stats", PLAN, "--budget", "8MiB@4096", "-c", "512"], ["two contexts", "8MiB@4096"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "-o", "-"], ["'-'", "--json"]),
    (["plan", "-m", MODEL, "--policy", "uniform:k4v4", "-o", OUT, "--json", OUT], ["two outputs", OUT]),
    (["export", PLAN, "--to", "kvtuner", "-o", PLAN], ["overwrite", PLAN]),
    (["estimate", "-m", MODEL, "--json", MODEL], ["overwrite", MODEL]),
    (["estimate", "-m", MODEL, "--plan", PLAN, "--json", str(FOLDER / "." / "p.plan.gguf")], ["overwrite"]),
    (["estimate", "-m", str(FOLDER)], [str(FOLDER), "a folder"]),
    (["estimate", "-m", MODEL, "-c", "abc"], ["--ctx-size", "a number from 0", "'abc'"]),
    (["estimate", "-m", MODEL, "-c", "-5"], ["a number from 0", "'-5'"]),
    (["estimate", "-m", MODEL, "-c", "99999999999"], ["a number from 0", "99999999999"]),
    (["estimate", "-m", MODEL, "-ub", "0"], ["--ubatch-size", "'0'"]),
    (["estimate", "-m", MODEL, "--memory", "4X"], ["4X", "GiB"]),
    (["estimate", "-m", MODEL, "--memory", ""], ["unreadable size", "''"]),
    (["estimate", "-m", MODEL, "--plan", ""], ["preset", "''"]),
    (["estimate", "-m", MODEL, "--plan", "k4"], ["'k4'", "k4v2"]),
    (["estimate", "-m", MODEL, "--plan", "q4_K"], ["q4_K", "q4_0"]),
    (["estimate", "-m", MODEL, "--plan", str(FOLDER / "none.plan.gguf")], ["no such plan", "none.plan.gguf", "kvaq plan"]),
    (["estimate", "-m", MODEL, "--plan", MODEL], ["is not a plan", "-m"]),
    (["estimate", "-m", MODEL, "--json"], ["--json"]),
    (["estimate", "-m", MODEL, "--json", str(FOLDER / "no/x.json")], ["no/x.json", "folder"]),
    (["calibrate", "-m", MODEL], ["--output"]),
    (["calibrate", "-m", MODEL, "-o", str(FOLDER)], ["the name of a file", str(FOLDER)]),
    (["calibrate", "-m", MODEL, "--effort", "fast", "-o", OUT], ["fast", "quick"]),
    (["calibrate", "-m", MODEL, "--chunks", "0", "-o", OUT], ["--chunks", "0"]),
    (["eval", "-m", MODEL, "-f", TEXT, "--types", "q8"], ["q8", "q8_0"]),
    (["eval", "-m", MODEL, "-f", TEXT, "--plan", str(FOLDER / "none.plan.gguf")], ["none.plan.gguf"]),
    (["bench", "-m", MODEL], ["--plan", "k4v4-rot"]),
    (["bench", "-m", MODEL, "--plan", "k4"], ["'k4'", "k4v2"]),
    (["bench", "-m", str(FOLDER / "none.gguf"), "--plan", "k4v2"], ["none.gguf"]),
    (["bench", "-m", MODEL, "--plan", "k4v2", "--types", "q9"], ["q9", "q8_0"]),
    (["bench", "-m", MODEL, "--plan", "k4v2", "-n", "0", "-p", "0"], ["-n or -p"]),
    (["bench", "-m", MODEL, "--plan", "k4v2", "--json", str(FOLDER / "no/x.json")], ["no/x.json", "folder"]),
    (["inspect"], ["file", "kvaq inspect --help"]),
    (["inspect", TEXT], ["GGUF", TEXT]),
    (["export", MODEL, "--to", "json"], ["is not a plan"]),
    (["export", "k4v2", "--to", "vllm"], ["-m MODEL.gguf"]),
    (["export", "k4vv2", "--to", "vllm"], ["k4vv2"]),
    (["export", PLAN, "--to", "tensorrt"], ["tensorrt", "kvtuner"]),
    (["import", str(FOLDER / "none.json"), "-m", MODEL, "-o", OUT], ["none.json"]),
    (["import", "-m", MODEL, "-o", OUT], ["FILE", "--kvq"]),
    (["import", "-m", MODEL, "-o", OUT, "--kvq", "nonsense"], ["nonsense", "JSON"]),
    (["import", "-m", MODEL, "-o", OUT, "--kvq", "nbits=4", "--budget", "3"], ["--budget", "norms"]),
    (["import", "-m", MODEL, "-o", OUT, "--kvq", '{"schema_version": 1}'], ["*.plan.gguf"]),
    (["report", "-o", OUT], ["--plan", "--eval"]),
    (["report", "--eval", TEXT, "-o", OUT], [TEXT, "kvaq eval --json"]),
    (["analyze", "-m", MODEL, "--score", "X"], ["'X'", "F (Frobenius)"]),
    (["serve", "-m", MODEL], ["--plan k4v4-rot"]),
    (["serve", "--plan", MODEL, "-m", MODEL], ["is not a plan", "-m"]),
    (["serve", "--plan", "k4v2", "-m", MODEL, "--kv-budget", "lots"], ["lots", "GiB"]),
    (["serve", "--plan", "k4v2", "-m", MODEL, "--kv-rewind", "all"], ["all", "512"]),
    (["serve", "--plan", "k4v2", "-m", MODEL, "--kv-rewind=-1"], ["'-1'", "tokens"]),
    (["serve", "--plan", "k4v2", "-m", MODEL, "--kv-rewind"], ["--kv-rewind needs a value", "tokens"]),
    (["exec", "--plan", "k4v2"], ["PROGRAM"]),
    (["exec", "--plan", "k4v2", "--", "/no/such"], ["/no/such"]),
    (["exec", "--plan", "k4v2", "--", "no-such-program"], ["no-such-program", "PATH"]),
    (["completion", "fish"], ["fish", "zsh"]),
]


class Errors(unittest.TestCase):
    def test_wrong_inputs(self):
        made = kvaq("plan", "-m", MODEL, "--policy", "uniform:k4v2", "-o", PLAN)
        self.assertEqual(made.returncode, 0, made.stderr)
        for args, things in WRONG:
            with self.subTest(" ".join(args)):
                said = kvaq(*args)
                self.assertEqual((said.returncode, said.stdout), (1, ""), said.stderr)
                self.assertRegex(said.stderr, r"\Akvaq: error: [^\n]{5,900}\n\Z")
                self.assertNotRegex(said.stderr, r"\d{20}", "numbers for people")
                for thing in things:
                    self.assertIn(thing, said.stderr)
        self.assertEqual([path.name for path in FOLDER.iterdir()], ["p.plan.gguf"], "something was left behind")

    def test_a_full_stdout_is_an_error(self):
        for args in (["estimate", "-m", MODEL, "-c", "512"], ["man"], ["--help"], ["completion", "bash"]):
            with self.subTest(" ".join(args)), open("/dev/full", "w") as full:
                said = subprocess.run([KVAQ, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
                self.assertEqual(said.returncode, 1)
                self.assertIn("cannot write to stdout: found No space left", said.stderr)

    def test_a_device_is_no_output(self):
        folder = tempfile.TemporaryDirectory(prefix="kvaq_device_")
        link = Path(folder.name) / "null"
        link.symlink_to("/dev/null")
        said = kvaq("estimate", "-m", MODEL, "--json", str(link))
        self.assertEqual(said.returncode, 1)
        self.assertIn("a device or pipe", said.stderr)
        self.assertTrue(link.is_symlink())

    def test_presets_are_presets_whatever_lies_in_the_folder(self):
        folder = tempfile.TemporaryDirectory(prefix="kvaq_names_")
        (Path(folder.name) / "q8_0").mkdir()
        said = subprocess.run([KVAQ, "exec", "--plan", "q8_0", "--", "/usr/bin/env"], capture_output=True, text=True, cwd=folder.name,
                              check=False, timeout=60)
        self.assertIn("KVAQ_PLAN=q8_0\n", said.stdout, said.stderr)

    def test_a_context_is_what_llama_cpp_makes_of_it(self):
        said = kvaq("estimate", "-m", MODEL, "--plan", "k4v4", "-c", "1000", "--json", "-")
        self.assertEqual(json.loads(said.stdout)["n_ctx"], 1024)

    def test_help_comes_in_every_way(self):
        whole = kvaq("--help")
        self.assertEqual((whole.returncode, kvaq("help").stdout), (0, whole.stdout))
        self.assertEqual(kvaq("help", "plan").stdout, kvaq("plan", "--help").stdout)

    def test_json_on_stdout_is_json_alone(self):
        temporary = tempfile.TemporaryDirectory(prefix="kvaq_json_")
        plan, html, imported = (f"{temporary.name}/{name}" for name in ("p.plan.gguf", "r.html", "i.plan.gguf"))
        kvaq("plan", "-m", MODEL, "--policy", "uniform:k4v2", "-o", plan)
        for args, kind in [
            (["estimate", "-m", MODEL, "-c", "512", "--json", "-"], "kvaq.estimate"),
            (["plan", "-m", MODEL, "--policy", "uniform:k4v2", "--json", "-"], "kvaq.plan"),
            (["inspect", plan, "--json", "-"], "plan"),
            (["inspect", MODEL, "--json", "-"], "model"),
            (["version", "--json", "-"], "kvaq.version"),
            (["import", "-m", MODEL, "-o", imported, "--kvq", '{"nbits": 4}', "--json", "-"], "kvaq.import"),
            (["export", plan, "--to", "vllm", "--json", "-"], "kvaq.export"),
            (["report", "--plan", plan, "-o", html, "--json", "-"], "kvaq.report"),
            (["analyze", "-m", MODEL, "--json", "-"], "kvaq.analysis"),
        ]:
            with self.subTest(" ".join(args)):
                said = kvaq(*args)
                self.assertEqual(said.returncode, 0, said.stderr)
                found = json.loads(said.stdout)
                self.assertEqual(found["kind"], kind)
                self.assertIn("schema_version", found)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
