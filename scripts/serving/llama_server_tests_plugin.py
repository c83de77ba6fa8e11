"""pytest plugin of llama_server_tests.py: llama.cpp's own server tests with a model that is on this machine.

The tests are written for models from the internet. Here every preset that is an ordinary decoder becomes MODEL; what needs another
kind of model is skipped with that reason. Expectations that only hold for the tiny model are adapted, the same way with and
without the drop-in:
  - numbers (`assert left == 21`): if the test's own number is not met, the number that plain llama.cpp gave is wanted instead;
  - words that the tiny model writes (match_regex): any text will do, except where a grammar or schema dictates it;
  - texts whose length in tokens matters are lengthened, because MODEL's tokenizer needs fewer tokens.
Variables: KVAQ_TESTS_MODEL, KVAQ_TESTS_MODE (record | replay), KVAQ_TESTS_RECORD (numbers of plain llama.cpp), KVAQ_TESTS_REPORT (outcomes)."""
import json
import os
import random
import re

import pytest

import kvaq_numbers
import utils

MODEL = os.environ["KVAQ_TESTS_MODEL"]
DRAFT_URL = "stories15M-q4_0.gguf"
OTHER_KINDS = {"bert_bge_small": "an embedding model", "bert_bge_small_with_fa": "an embedding model", "jina_reranker_tiny": "a reranking model",
               "tinygemma3": "a model with images (mmproj)"}
DICTATED = re.compile("grammar|schema|response_format|template|prefill|error|invalid")  # tests whose texts do not depend on the model
LONGER = {("test_ctx_shift", "SHORT_TEXT"): 1.5, ("test_ctx_shift", "LONG_TEXT"): 2}

outcomes = {}
real_start = utils.ServerProcess.start
real_match = utils.match_regex


def preset(name, make):
    def made():
        server = make()
        if name in OTHER_KINDS:
            server.kvaq_needs = OTHER_KINDS[name]
        elif name != "router":
            server.model_file, server.model_hf_repo, server.model_hf_file = MODEL, None, None
        return server
    return staticmethod(made)


def start(self, *args, **kwargs):
    needs = getattr(self, "kvaq_needs", None)
    if needs is None and (self.model_hf_repo or self.model_url or self.mmproj_url):
        needs = f"the model {self.model_hf_repo or self.model_url or self.mmproj_url}"
    if needs is not None:
        pytest.skip(f"needs {needs}")
    if self.fa == "off":
        self.fa = None  # a plan refuses -fa off by name, so both sides run without it
    # A story goes on until it is cut, as the tiny model's does; where a grammar ends the text, it must be able to end.
    os.environ["KVAQ_TESTS_FLAGS"] = "" if re.search("ignore_eos|grammar|schema|response_format", kvaq_numbers.current) else "--ignore-eos"
    kwargs.setdefault("timeout_seconds", 600)  # 60 is too short on a machine that is busy with other work
    return real_start(self, *args, **kwargs)


def match_regex(regex, text):
    if real_match(regex, text):
        return True
    return not DICTATED.search(kvaq_numbers.current) and isinstance(text, str) and len(text.strip()) > 0


def download_file(url, output_file_path=None):
    if DRAFT_URL in url:
        return MODEL
    pytest.skip(f"needs the file {url.split('/')[-1]}")


for preset_name, method in list(vars(utils.ServerPreset).items()):
    if preset_name == "load_all":
        setattr(utils.ServerPreset, preset_name, staticmethod(lambda: None))
    elif isinstance(method, staticmethod):
        setattr(utils.ServerPreset, preset_name, preset(preset_name, method.__func__))
utils.ServerProcess.start = start
utils.match_regex = match_regex
utils.download_file = download_file


def pytest_collection_modifyitems(items):
    for item in items:
        for (module, name), factor in LONGER.items():
            if item.module.__name__.endswith(module) and not hasattr(item.module, f"kvaq_{name}"):
                text = getattr(item.module, name)
                setattr(item.module, f"kvaq_{name}", text)
                setattr(item.module, name, (text + "\n" + text)[:int(len(text) * factor)])


def pytest_runtest_setup(item):
    random.seed(0)  # test_completion_prompt_cache draws its prompts
    kvaq_numbers.begin(item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport):
    if report.when != "call" and report.passed:
        return
    said = report.capstdout + report.capstderr
    outcome = "skipped" if report.skipped else "passed" if report.passed else "failed"
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        reason = next((line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")), "")
    entry = outcomes.get(report.nodeid)
    if entry is not None and entry["outcome"] == "failed":
        return
    outcomes[report.nodeid] = {"outcome": outcome, "reason": reason, "adapted": kvaq_numbers.n_adapted, "seconds": round(report.duration, 1),
                               "plans": len(re.findall("^kvaq: plan ", said, re.M)), "errors": re.findall("^kvaq: error: .*", said, re.M)}





def pytest_sessionfinish():
    kvaq_numbers.finish()
    with open(os.environ["KVAQ_TESTS_REPORT"], "w") as file:
        json.dump(outcomes, file, indent=1)
