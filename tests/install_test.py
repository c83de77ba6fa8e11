"""cmake --install: the prefix may be moved, holds no path of the build, and find_package(kvaq) works against it.

    install_test.py BUILD SOURCE MODEL
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BUILD, SOURCE, MODEL = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("KVAQ_", "LD_"))}


def run(*command, env=None, ok=True):
    result = subprocess.run([str(word) for word in command], env={**CLEAN, **(env or {})}, capture_output=True, text=True, check=False)
    if ok and result.returncode != 0:
        raise AssertionError(f"{command} gave {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


def is_elf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def runpath(path: Path) -> list[str]:
    found = re.search(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", run("readelf", "-d", path).stdout)
    return found[1].split(":") if found else []


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="kvaq_install_"))
        run("cmake", "--install", BUILD, "--prefix", cls.folder / "first")
        cls.prefix = cls.folder / "moved" / "there"
        cls.prefix.parent.mkdir()
        (cls.folder / "first").rename(cls.prefix)
        cls.files = [path for path in cls.prefix.rglob("*") if path.is_file()]

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def kvaq(self, *args, **options):
        return run(self.prefix / "bin/kvaq", *args, **options)

    def test_libraries_are_found_from_where_the_files_are(self):
        built = [path for folder in ("bin", "lib") for path in (BUILD / folder).iterdir() if path.is_file() and is_elf(path)]
        programs = [path for path in self.files if is_elf(path)]
        self.assertGreater(len(programs), 15)
        for path in built + programs:
            for element in runpath(path):
                self.assertTrue(element.startswith("$ORIGIN"), f"{path}: {element!r} of {runpath(path)}")
        for path in programs:
            found = run("ldd", path).stdout
            self.assertNotIn("not found", found, path)
            for line in found.splitlines():
                self.assertFalse(str(BUILD) in line or "/.deps/" in line, f"{path}: {line}")

    def test_no_file_of_ours_holds_a_path_of_the_build(self):
        mapped = "-ffile-prefix-map" in (BUILD / "CMakeCache.txt").read_text()  # preset package; others have them in debug information
        paths = {os.fsencode(path) for path in (BUILD, SOURCE, BUILD.resolve(), SOURCE.resolve(), self.folder / "first")}
        for path in self.files:
            if "lib/kvaq/llama.cpp" in str(path):  # llama.cpp's own messages name its source files
                continue
            if not mapped and (is_elf(path) or path.suffix == ".a"):
                continue
            content = path.read_bytes()
            for name in paths:
                self.assertNotIn(name, content, path)

    def test_has_what_a_user_needs(self):
        for name in ["bin/kvaq", "lib/libkvaq-llama.so", "lib/kvaq/llama-cpp-python/libllama.so", "lib/kvaq/llama.cpp/bin/llama-server",
                     "lib/kvaq/llama.cpp/lib/libllama.so.0", "include/kvaq.h", "include/kvaq/plan/plan.h", "include/kvaq/llama.cpp/llama.h",
                     "lib/libkvaq_core.a", "lib/cmake/kvaq/kvaqConfig.cmake", "share/man/man1/kvaq.1",
                     "share/bash-completion/completions/kvaq", "share/zsh/site-functions/_kvaq", "share/doc/kvaq/copyright"]:
            self.assertTrue((self.prefix / name).is_file(), name)

    def test_the_program_runs(self):
        self.assertRegex(self.kvaq("version").stdout, r"^kvaq \d+\.\d+\.\d+$")
        found = json.loads(self.kvaq("estimate", "-m", MODEL, "-c", 4096, "--plan", "k4v2", "--json", "-").stdout)
        self.assertEqual(found["plans"][0]["name"], "k4v2")

    def test_finds_llama_cpps_programs(self):
        version = self.kvaq("serve", "--plan", "k4v2", "--version")
        self.assertIn("version", version.stdout + version.stderr)
        empty = self.folder / "empty"
        empty.mkdir()
        wrong = self.kvaq("serve", "--plan", "k4v2", "-m", MODEL, env={"KVAQ_LLAMA_BIN": str(empty)}, ok=False)
        self.assertEqual((wrong.returncode, wrong.stdout, wrong.stderr.count("\n")), (1, "", 1), wrong.stderr)
        for thing in ("KVAQ_LLAMA_BIN", "llama-server", str(empty)):
            self.assertIn(thing, wrong.stderr)
        programs = self.prefix / "lib/kvaq/llama.cpp/bin"
        programs.rename(self.folder / "away")
        try:
            absent = self.kvaq("serve", "--plan", "k4v2", "-m", MODEL, env={"PATH": "/nowhere"}, ok=False)
            self.assertEqual((absent.returncode, absent.stdout, absent.stderr.count("\n")), (1, "", 1), absent.stderr)
            for thing in ("llama-server", str(programs), "KVAQ_LLAMA_BIN"):
                self.assertIn(thing, absent.stderr)
            there = self.kvaq("serve", "--plan", "k4v2", "--version", env={"KVAQ_LLAMA_BIN": str(self.folder / "away")}, ok=False)
            self.assertNotIn("kvaq: error", there.stderr)  # what llama-server says without its libraries is its own affair
        finally:
            (self.folder / "away").rename(programs)

    def test_refuses_a_place_that_the_loader_cannot_take(self):
        spaced = self.folder / "a b"
        shutil.copytree(self.prefix, spaced, symlinks=True)
        refused = run(spaced / "bin/kvaq", "run", "--plan", "k4v2", "-m", MODEL, ok=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("LD_PRELOAD", refused.stderr)

    def test_find_package_builds_a_consumer(self):
        tree = self.folder / "consumer"
        run("cmake", "-G", "Ninja", "-S", SOURCE / "tests/consumer", "-B", tree, f"-DCMAKE_PREFIX_PATH={self.prefix}",
            f"-DKVAQ_EXAMPLES={SOURCE / 'examples'}")
        run("cmake", "--build", tree)
        found = json.loads(run(tree / "use_c_api", MODEL, "k4v2").stdout)
        ours = json.loads(self.kvaq("estimate", "-m", MODEL, "-c", 4096, "--plan", "k4v2", "--json", "-").stdout)
        self.assertEqual(found, ours)
        size, mse = run(tree / "use_core").stdout.split()
        self.assertEqual(int(size), 64 * 64 * 4 // 8 + 2 * 64 * 2)  # codes; one scale and one offset a token, groups of 64
        self.assertTrue(0 < float(mse) < 0.01, mse)
        answer = run(tree / "use_attach", MODEL, "1, 2, 3, 4, 5, 6,", "k4v4-rot")
        self.assertIn("kvaq: plan k4v4-rot", answer.stderr)
        self.assertRegex(answer.stdout, r" 7, 8, [\s\S]*\[cache: [1-9]\d* bytes\]")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
