"""README and docs against the program and the tree: every `kvaq ...` line parses, relative links and named files exist, results are listed.

    docs_test.py KVAQ SOURCE
"""

import re
import shlex
import subprocess
import sys
import unittest
from pathlib import Path

KVAQ, SOURCE = sys.argv[1], Path(sys.argv[2])
PAGES = [SOURCE / "README.md", SOURCE / "results/README.md", SOURCE / "packaging/python/README.md", *sorted((SOURCE / "docs").glob("*.md"))]
PROGRAMS = r"(?:\./)?(?:build/\w+/bin/|[\w.$/-]+/bin/)?kvaq"


def completion() -> dict[str, dict]:
    """verb -> flags, and whether it passes further ones on, as `kvaq completion bash` has them."""
    script = subprocess.run([KVAQ, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    man = subprocess.run([KVAQ, "man"], capture_output=True, text=True, check=True).stdout
    verbs = {}
    for name, body in re.findall(r"^        ([\w-]+)\)\n(.*?);;$", script, re.S | re.M):
        verbs[name] = {"flags": set(), "passes": False}
    for name, flags in re.findall(r"^        ([\w-]+)\)\n(?:            case .*?esac\n)?            flags='([^']*)'", script, re.S | re.M):
        verbs[name]["flags"] = set(flags.split())
    for section in re.split(r"^\.SH ", man, flags=re.M):
        name = re.match(r"KVAQ (\S+)", section)
        if name and "Further arguments" in section:
            verbs[name[1]]["passes"] = True
    return verbs


VERBS = completion()


def commands(text: str) -> list[str]:
    """Command lines of a page: lines of fenced blocks that start with kvaq (after `$ ` or variables), and inline code that does."""
    found = []
    rest = []
    for i, part in enumerate(re.split(r"^```.*$", text, flags=re.M)):
        if i % 2:
            joined = re.sub(r"\\\n\s*", " ", part)
            prompts = re.search(r"^\s*\$ ", joined, re.M)  # with prompts, other lines are output
            for line in joined.splitlines():
                if prompts and not re.match(r"\s*\$ ", line):
                    continue
                line = re.sub(r"^\s*\$ ", "", line).strip()
                found += re.findall(rf"(?:^|&& |\| )((?:\w+=\S+ )*{PROGRAMS} .*?)(?= && | \| |$)", line)
        else:
            rest.append(part)
    for code in re.findall(r"`([^`\n]+)`", "".join(rest)):
        if re.match(rf"(?:\w+=\S+ )*{PROGRAMS} ", code):
            found.append(code.split(" | ")[0].split(" && ")[0])
    return found


def words_of(command: str) -> list[str]:
    command = re.sub(r"(?:^|\s)#.*$", "", command)  # a comment
    command = re.sub(r"\[([^\]]*)\]", r" \1 ", command)  # [optional]
    command = re.sub(r"\s\d?>\S*.*$", "", command)
    return [word for word in shlex.split(command.replace("<(", " ")) if word not in ("...", "…")]


class Docs(unittest.TestCase):
    def test_every_command_parses(self):
        n = 0
        for page in PAGES:
            for command in commands(page.read_text()):
                with self.subTest(page=page.name, command=command):
                    words = words_of(command)
                    while words and "=" in words[0]:
                        words.pop(0)
                    n += 1
                    if words[1].startswith("--"):
                        self.assertIn(words[1], ("--help", "--version"))
                        continue
                    for verb in re.split(r"[|]", words[1].strip(")")):
                        if verb in ("VERB",):
                            continue
                        self.assertIn(verb, sorted(VERBS), "no such verb")
                        known = VERBS[verb]
                        for word in words[2:]:
                            if word == "--" or (known["passes"] and not known["flags"]):
                                break
                            for flag in word.split("|"):
                                flag = flag.split("=")[0].rstrip(".,)")
                                if not re.match(r"--?[a-zA-Z]", flag) or flag in ("--help", "-h"):
                                    continue
                                if not known["passes"]:
                                    self.assertIn(flag, known["flags"], f"kvaq {verb} has no such flag")
        self.assertGreater(n, 40, "the pages are read wrongly")

    def test_flags_named_alone_exist(self):
        """Inline code that starts with a flag: of a verb, or of a llama.cpp program that a verb starts."""
        flags = set().union(*(verb["flags"] for verb in VERBS.values())) | {"--help", "--version"}
        for verb in ("serve", "run", "perplexity", "bench"):
            said = subprocess.run([KVAQ, verb, "--help"], capture_output=True, text=True, check=False)
            flags |= set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", said.stdout + said.stderr))
        for page in PAGES:
            if page.name == "comparison.md":  # names peers' flags
                continue
            for flag in re.findall(r"`(--?[a-zA-Z][\w-]*)[^`\n]*`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
                with self.subTest(page=page.name, flag=flag):
                    self.assertTrue(flag in flags or self.is_suffix(flag), "no such flag")

    @staticmethod
    def is_suffix(text: str) -> bool:
        """Suffixes of presets look like flags: -rot, -g32."""
        return subprocess.run([KVAQ, "estimate", "-m", "/nowhere", "--plan", "k4v2" + text], capture_output=True, text=True,
                              check=False).stderr.find("/nowhere") >= 0

    def test_relative_links_exist(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
                if re.match(r"\w+:", target):
                    continue
                path, _, anchor = target.partition("#")
                file = (page.parent / path).resolve() if path else page
                with self.subTest(page=page.name, link=target):
                    self.assertTrue(file.exists(), "no such file")
                    if anchor:
                        heads = [re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
                                 for head in re.findall(r"^#+ (.*)$", file.read_text(), re.M)]
                        self.assertIn(anchor, heads)

    def test_named_files_exist(self):
        """Paths of the tree in code: kvaq/..., tests/..., scripts/..., examples/..., data/..., cmake/..., docs/..., results/..., packaging/..."""
        for page in PAGES:
            for code in re.findall(r"`([^`\n]+)`", page.read_text()) + re.findall(r"[( ]((?:kvaq|tests|scripts|examples)/[\w./-]+\.\w+)", page.read_text()):
                for path in re.findall(r"(?<![\w./$-])((?:kvaq|tests|scripts|examples|data|cmake|docs|results|packaging)/[\w./-]*\w\.\w+)", code):
                    with self.subTest(page=page.name, path=path):
                        self.assertTrue((SOURCE / path).exists(), "no such file")

    def test_messages_are_real(self):
        """First cells of troubleshooting.md: code there is a part of a message in the sources (adjacent literals put together)."""
        text = ""
        for pattern in ("kvaq/**/*.cc", "kvaq/**/*.h", "cmake/*.cmake", "scripts/*.sh", "packaging/python/kvaq/*.py"):
            for path in sorted(SOURCE.glob(pattern)):
                text += path.read_text()
        text = re.sub(r'"\s*(?:KVAQ_\w+\s*)?\n?\s*"', "", text)
        text = text.replace("${kvaq_llama_wanted}", "wanted a shared libllama")
        n = 0
        for row in re.findall(r"^\| (.*?) \|", (SOURCE / "docs/troubleshooting.md").read_text(), re.M):
            for message in re.findall(r"`([^`]+)`", row):
                n += 1
                with self.subTest(message):
                    self.assertIn(message, text, "no source says so")
        self.assertGreater(n, 20)

    def test_make_targets_exist(self):
        targets = set(re.findall(r"^(\w+)(?: \w+)*:", (SOURCE / "Makefile").read_text(), re.M)) | {"tsan"}
        for page in PAGES:
            for target in re.findall(r"`make (\w+)`", page.read_text()):
                self.assertIn(target, targets, page.name)

    def test_every_committed_result_is_explained(self):
        told = (SOURCE / "docs/benchmarks.md").read_text() + (SOURCE / "results/README.md").read_text()
        for path in sorted((SOURCE / "results").iterdir()):
            if path.name != "README.md" and path.suffix != ".partial":  # of a table that is being made
                with self.subTest(path.name):
                    self.assertTrue(path.name in told or path.stem + ".*" in told, "neither in docs/benchmarks.md nor in results/README.md")
        for name in re.findall(r"`?([\w-]+)\.\*`?", told):
            with self.subTest(name):
                self.assertTrue(list((SOURCE / "results").glob(name + ".*")), "a result that is named is not there")

    def test_every_page_is_in_the_index(self):
        index = (SOURCE / "docs/README.md").read_text()
        for page in (SOURCE / "docs").glob("*.md"):
            if page.name != "README.md":
                self.assertIn(f"({page.name})", index)

    def test_the_worked_example_is_short(self):
        self.assertLess(len((SOURCE / "examples/laplace_codec.cc").read_text().splitlines()), 80)

    def test_no_host_of_a_registry_is_named(self):
        names = "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "deb" + r"\.debian\.org", "huggingface" + r"\.co/[^ ]*resolve"])
        for page in PAGES:
            self.assertIsNone(re.search(names, page.read_text()), page.name)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
