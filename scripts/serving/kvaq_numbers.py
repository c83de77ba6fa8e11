"""Numbers in llama.cpp's server tests that belong to its tiny model (llama_server_tests.py puts `same` into the copies it runs).

In record mode (plain llama.cpp) a number that differs from the test's own is noted; in replay mode (under a plan) the noted one is wanted."""
import json
import os

MODE = os.environ["KVAQ_TESTS_MODE"]
current = ""
n_adapted = 0
noted = {}
counts = {}
if os.path.exists(os.environ["KVAQ_TESTS_RECORD"]):  # in record mode: of tests that are not run again
    with open(os.environ["KVAQ_TESTS_RECORD"]) as record:
        noted = json.load(record)


def begin(test):
    global current, n_adapted
    current, n_adapted = test, 0
    counts.clear()


def same(left, right, place):
    """left == right, or left == what plain llama.cpp gave at this place of this test."""
    global n_adapted
    counts[place] = counts.get(place, 0) + 1
    key = f"{current} {place} {counts[place]}"
    if MODE == "record":
        noted[key] = left
    wanted = noted.get(key, right) if left != right else right  # in record mode, itself
    n_adapted += wanted != right
    return left == wanted


def finish():
    if MODE == "record":
        with open(os.environ["KVAQ_TESTS_RECORD"], "w") as record:
            json.dump(noted, record, indent=1)
