#!/usr/bin/env python3
"""Says in a few lines what `make run` found. usage: summary.py EVAL_JSON PLAN_FILE ANSWER_FILE SECONDS"""
import json
import os
import sys


def row_line(row, f16_bytes):
    share = f"1/{f16_bytes / row['bytes']:.1f} of f16"
    agree = f"{100 * row['same_top']['value']:.1f} % same next token"
    return (f"  {row['name']:<34} {row['effective_bits']:5.2f} bits  {share:<13} KL {row['mean_kl']['value']:.4f}"
            f" ± {row['mean_kl']['standard_error']:.4f} nats  {agree}")


def main():
    eval_path, plan_path, answer_path, seconds = sys.argv[1:]
    with open(eval_path, encoding="utf-8") as file:
        result = json.load(file)
    with open(answer_path, encoding="utf-8") as file:
        answer = " ".join(file.read().split())
    rows = [row for row in result["rows"] if row["kind"] in ("plan", "llama.cpp")]
    f16 = next(row for row in result["rows"] if row["kind"] == "reference")
    # The plan's row carries the plan's own name, or its file's; it is the first plan that was asked for.
    ours = next(row for row in rows if row["kind"] == "plan")
    print(f"\n== done in {seconds} s: {result['model']['name']}, {result['n_chunks']} x {result['n_ctx']} tokens, "
          f"all against the same f16 cache (small KL = little changed)\n")
    for row in sorted(rows, key=lambda row: -row["effective_bits"]):
        print(row_line(row, f16["bytes"]) + ("   <- the plan just made" if row is ours else ""))
    control = [row for row in result["rows"] if row["kind"] == "control"]
    if control:
        print(f"  (rounding alone, f16 in other batch sizes: KL {control[0]['mean_kl']['value']:.4f} nats)")
    print(f"\nBits are everything the cache holds, at {result['n_ctx']} tokens: a short context shows every plan's f16 window large.")
    print(f"Answer through the packed cache: {answer}")
    print("Report: out/report.html (open it in a browser), out/report.md (the same for pasting)")
    print(f"Files: {os.path.splitext(eval_path)[0]}.md (table), {eval_path} (all numbers), {plan_path} (try: kvaq inspect)")


if __name__ == "__main__":
    main()
