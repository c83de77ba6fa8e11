#!/usr/bin/env python3
"""Speculative decoding under the drop-in: a draft model (the model itself: nearly all drafts are taken, or, by --spec-synth-rates, none), and n-grams.

usage: scripts/serving/speculation.py [--plans ,f16,k4v4-rot-s4] [--tokens 64] [--out results/serving-speculation.md]     ('' is llama.cpp itself)

At temperature 0 speculation must not change the text. llama.cpp's own matrix products round differently for another number of tokens in a batch, so
near ties may fall otherwise, with and without us: each kind is compared with the same server without speculation, and plans with plain llama.cpp's own
agreement. Exit code 1 if drafts are not taken, if a text without near ties differs, or if a plan's texts agree less than plain llama.cpp's by more than a prompt."""
import argparse
import os

from server import MODEL, ROOT, Server, conditions, fail, finish, plan_name, write_results

# No choice in these is near a tie: texts must be equal.
SURE = ["1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", "A, B, C, D, E, F, G, H,", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,",
        "red green blue red green blue red green blue red green blue red"]
OPEN = ["The capital of France is", "Once upon a time there was a lighthouse keeper who", "The three laws of motion say that", "To bake bread you need",
        "In the year 1969, people", "The difference between a lake and a sea is"]
KINDS = {"draft model": ["--spec-type", "draft-simple", "-md", MODEL, "--spec-draft-n-max", "8", "--spec-draft-n-min", "1"],
         "draft model p-min 0": ["--spec-type", "draft-simple", "-md", MODEL, "--spec-draft-n-max", "16", "--spec-draft-p-min", "0"],
         "draft model all rejected": ["--spec-type", "draft-simple", "-md", MODEL, "--spec-draft-n-max", "4", "--spec-synth-rates", "0,0,0,0"],
         "ngram-simple": ["--spec-type", "ngram-simple"],
         "ngram-mod": ["--spec-type", "ngram-mod"]}


def texts(plan, flags, n_tokens):
    """Text of every prompt, drafted and accepted tokens over all; two slots at once would change batches, so one prompt at a time."""
    with Server(plan, ["-c", "2048", "-np", "1", *flags]) as server:
        answers, drafted, accepted = [], 0, 0
        for prompt in SURE + OPEN:
            status, answer = server.post("/completion", {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True})
            if status != 200:
                raise RuntimeError(f"{plan_name(plan)} {flags}: status {status}: {answer}")
            answers.append(answer["content"])
            drafted += answer["timings"].get("draft_n", 0)
            accepted += answer["timings"].get("draft_n_accepted", 0)
        code, errors = server.interrupt()
        if code != 0 or errors:
            raise RuntimeError(f"{plan_name(plan)} {flags}: exit code {code}, {errors}")
    return answers, drafted, accepted


def common(a, b):
    """Share of the text up to the first difference."""
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return n / max(len(a), len(b), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",f16,k4v4-rot-s4")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of: %(default)s")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        fail(f"unknown kind of speculation: wanted some of {', '.join(KINDS)}, found {arguments.kinds}")
    rows, problems, plain_equal = [], [], {}
    for plan in arguments.plans.split(","):
        reference, _, _ = texts(plan, [], arguments.tokens)
        for kind in kinds:
            answers, drafted, accepted = texts(plan, KINDS[kind], arguments.tokens)
            equal = [a == b for a, b in zip(answers, reference)]
            shares = [common(a, b) for a, b in zip(answers, reference)]
            row = {"plan": plan_name(plan), "kind": kind, "drafted": drafted, "accepted": accepted, "equal_sure": sum(equal[:len(SURE)]),
                   "equal_open": sum(equal[len(SURE):]), "mean_common": sum(shares) / len(shares)}
            rows.append(row)
            print(f"{row['plan']}, {kind}: {accepted} of {drafted} drafted tokens taken, {row['equal_sure']} of {len(SURE)} sure and {row['equal_open']} of "
                  f"{len(OPEN)} open texts as without speculation", flush=True)
            if plan == "":
                plain_equal[kind] = row["equal_open"]
            if drafted == 0 or (accepted == 0) != ("rejected" in kind):
                problems.append(f"{row['plan']}, {kind}: {accepted} of {drafted} drafted tokens were taken")
            for prompt, a, b in zip(SURE, answers, reference):
                if a != b:
                    problems.append(f"{row['plan']}, {kind}: {prompt!r} goes on with {a!r}, without speculation with {b!r}")
            if row["equal_open"] + 1 < plain_equal.get(kind, 0):
                problems.append(f"{row['plan']}, {kind}: {row['equal_open']} open texts are equal, plain llama.cpp has {plain_equal[kind]}")
    if arguments.out:
        lines = ["# Speculative decoding under the drop-in", "", f"`scripts/serving/speculation.py --out {os.path.relpath(arguments.out, ROOT)}`; {conditions()}.", "",
                 f"{len(SURE)} prompts whose continuation is never near a tie and {len(OPEN)} open ones, {arguments.tokens} tokens each at temperature 0, one at a time, compared "
                 "with the same server without speculation. llama.cpp's own matrix products round differently in a batch of another size, so open texts may part, "
                 "without us as well.", "",
                 "| cache | speculation | tokens drafted | taken | sure texts equal | open texts equal | mean share before the first difference |", "|---|---|---|---|---|---|---|"]
        lines += [f"| {row['plan']} | {row['kind']} | {row['drafted']} | {row['accepted']} | {row['equal_sure']} of {len(SURE)} | {row['equal_open']} of {len(OPEN)} | "
                  f"{row['mean_common']:.3f} |" for row in rows]
        write_results(arguments.out, "\n".join(lines) + "\n", rows)
    finish(problems)


if __name__ == "__main__":
    main()
