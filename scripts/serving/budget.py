#!/usr/bin/env python3
"""A server whose cache may hold less than its context (--kv-budget): more is asked of it than fits.

usage: scripts/serving/budget.py [--plan k4v4-rot-s4] [--budget 34MiB]

Wanted: the server reserves no more than the budget; two long requests that do not fit together get llama.cpp's own answer of a full cache (an error by name, or a text cut
short), not a crash or a hang; afterwards all slots are free and a short prompt is answered as before. Exit code 1 if something is missing."""
import argparse
import re
import threading

from server import Server, check, finish

STORY = "The lighthouse keeper wrote down the weather, the ships and the birds of the day, and put the book back on its shelf. "
QUESTION = "The capital of France is"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", default="k4v4-rot-s4")
    parser.add_argument("--budget", default="34MiB")
    arguments = parser.parse_args()
    flags = ["-np", "2", "-c", "4096", "-b", "128", "-ub", "128", "--cache-ram", "0", "--slots", "--kv-budget", arguments.budget]
    with Server(arguments.plan, flags) as server:
        ask = {"prompt": QUESTION, "n_predict": 8, "temperature": 0, "cache_prompt": False}
        first = server.post("/completion", ask)[1]["content"]
        answers = []

        def long_prompt(index):
            body = {"prompt": f"{index}. " + STORY * 45, "n_predict": 400, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
            answers.append(server.post("/completion", body))

        threads = [threading.Thread(target=long_prompt, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for status, answer in answers:
            said = answer.get("error", {}).get("message", "") if status != 200 else f"{answer['tokens_evaluated']} tokens read, {answer['tokens_predicted']} written, stop: {answer['stop_type']}"
            check("answered or refused by name", status == 200 or "context" in said.lower() or "kv" in said.lower() or "memory" in said.lower(), f"{status}: {said}")
        check("not both fit", any(status != 200 or answer["truncated"] or answer["tokens_predicted"] < 400 for status, answer in answers), [status for status, _ in answers])
        check("slots are free", server.idle(60), "within a minute")
        again = server.post("/completion", ask)[1]["content"]
        check("a short prompt is answered as before", again == first, repr(again))
        log = server.log_text()
        code, errors = server.interrupt()
        check("exit code", code == 0, code)
        check("kvaq: error", not errors, errors)
        limit = [line for line in log.splitlines() if "kvaq: limit" in line]
        check("says what the limit leaves", len(limit) > 0, limit[:1])
        reserved = re.findall(r"([\d.]+) MiB reserved", server.log_text())
        check("reserved", reserved and float(reserved[-1]) <= float(arguments.budget.removesuffix("MiB")), reserved)
    finish()


if __name__ == "__main__":
    main()
