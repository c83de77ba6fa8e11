#!/usr/bin/env python3
"""A long chat in a context much shorter than it, with context shift: is it as coherent as under llama.cpp's own f16 cache?

usage: scripts/serving/long_chat.py [--plans ,f16,k4v4-rot-s4] [--turns 200] [-c 4096] [--out results/serving-long-chat.md]     ('' is llama.cpp itself)

The client sends its whole history each turn and drops the older half of it when it does not fit any more; the server keeps what it has of the rest
(--cache-reuse: keys are moved, not computed again) and shifts its context when an answer runs beyond it (--context-shift). Every tenth turn tells a number,
and two turns later asks for it. Measures, by quarters of the chat:
  surprise   mean negative log-likelihood of the transcript under the plain f16 model (llama-perplexity -c 512), nats a token
  repeated   share of the word 4-grams of an answer that one of the five answers before it has as well
  recalled   how many of the told numbers came back
Exit code 1 if a plan's surprise is more than --allow (0.35) above plain llama.cpp's in a quarter, if it recalls less than plain llama.cpp by more
than a quarter of the questions, if nothing was shifted, or if a request fails."""
import argparse
import math
import os
import re
import subprocess
import tempfile

from server import LLAMA_BIN, MODEL, ROOT, Server, conditions, finish, plan_name, write_results

TOPICS = ["the sea", "bread", "trains", "winter", "bees", "the moon", "music", "gardens", "mathematics", "mountains", "paper", "rivers", "bridges", "cats", "coffee", "glass",
          "deserts", "horses", "clocks", "forests", "languages", "salt", "ships", "volcanoes", "books", "rain", "islands", "iron", "chess", "dreams"]
FORMS = ["Tell me something interesting about {}.", "Why do people care about {}?", "Write two sentences of a story about {}.", "What would a child ask about {}?",
         "How has {} changed over the centuries?", "Describe {} to somebody who has never heard of it.", "What is the most common mistake about {}?"]
FIRST_NUMBER = 137
SYSTEM = {"role": "system", "content": "You are a friendly and knowledgeable companion. You answer in two or three sentences."}


def question(turn):
    """The question of a turn, and the number that its answer must hold (or None)."""
    number = FIRST_NUMBER + 31 * (turn // 10)
    if turn % 10 == 3:
        return f"Please remember that my ticket number is {number}. What is my ticket number?", None
    if turn % 10 == 5:
        return "What is my ticket number?", str(number)
    return FORMS[turn % len(FORMS)].format(TOPICS[(turn * 7) % len(TOPICS)]), None


def chat(plan, arguments):
    flags = ["-np", "1", "-c", str(arguments.context), "--context-shift", "--cache-reuse", "32", "--cache-ram", "0"]
    turns = []
    with Server(plan, flags) as server:
        history, used = [], 0
        for turn in range(arguments.turns):
            asked, number = question(turn)
            dropped = used + 30 > arguments.context - 24  # what the last turn left, and this question, do not fit
            if dropped:
                history = history[len(history) // 4 * 2:]
            history.append({"role": "user", "content": asked})
            status, answer = server.post("/v1/chat/completions", {"messages": [SYSTEM, *history], "temperature": 0.6, "top_k": 40, "seed": turn, "max_tokens": arguments.tokens,
                                                                  "cache_prompt": True, "repeat_penalty": 1.1, "repeat_last_n": 128})
            if status != 200:
                raise RuntimeError(f"{plan_name(plan)}, turn {turn}: status {status}: {answer}")
            said = answer["choices"][0]["message"]["content"]
            history.append({"role": "assistant", "content": said})
            used = answer["usage"]["total_tokens"]
            turns.append({"asked": asked, "said": said, "dropped": dropped, "right": None if number is None else number in said,
                          **{name: answer["timings"][name] for name in ("cache_n", "prompt_n", "predicted_n")}})
        log = server.log_text()
        code, errors = server.interrupt()
    if code != 0 or errors:
        raise RuntimeError(f"{plan_name(plan)}: exit code {code}, {errors[:3]}")
    return turns, len(re.findall("context shift, n_keep", log)), len(re.findall("reusing chunk", log))


def surprise(turns):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(f"{turn['asked']}\n{turn['said']}\n" for turn in turns))
        file.flush()
        result = subprocess.run([os.path.join(LLAMA_BIN, "llama-perplexity"), "-m", MODEL, "-f", file.name, "-c", "512", "-t", "2"], capture_output=True, text=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", result.stdout + result.stderr)
    if found is None:
        raise RuntimeError(f"llama-perplexity: {(result.stdout + result.stderr)[-1500:]}")
    return math.log(float(found[1]))


def grams(text):
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i:i + 4]) for i in range(len(words) - 3)]


def repeated(turns, first, last):
    n = n_repeated = 0
    for i in range(first, last):
        before = {gram for turn in turns[max(0, i - 5):i] for gram in grams(turn["said"])}
        found = grams(turns[i]["said"])
        n += len(found)
        n_repeated += sum(gram in before for gram in found)
    return n_repeated / max(1, n)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",f16,k4v4-rot-s4")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--context", "-c", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most")
    parser.add_argument("--allow", type=float, default=0.35)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows, problems, plain = [], [], None
    for plan in arguments.plans.split(","):
        turns, n_shifts, n_chunks = chat(plan, arguments)
        parts = 4 if arguments.turns >= 80 else 1
        bounds = [arguments.turns * i // parts for i in range(parts + 1)]
        asked = [turn["right"] for turn in turns if turn["right"] is not None]
        row = {"plan": plan_name(plan), "surprise": [surprise(turns[a:b]) for a, b in zip(bounds, bounds[1:])], "repeated": [repeated(turns, a, b) for a, b in zip(bounds, bounds[1:])],
               "recalled": sum(asked), "asked": len(asked), "drops": sum(turn["dropped"] for turn in turns), "shifts": n_shifts, "reused_chunks": n_chunks,
               "tokens_reused": sum(turn["cache_n"] for turn in turns), "tokens_computed": sum(turn["prompt_n"] for turn in turns),
               "tokens_said": sum(turn["predicted_n"] for turn in turns)}
        rows.append(row)
        print(", ".join(f"{name} {' '.join(f'{v:.3f}' for v in value) if isinstance(value, list) else value}" for name, value in row.items()), flush=True)
        plain = plain or row
        if row["drops"] == 0 or row["shifts"] == 0:
            problems.append(f"{row['plan']}: {row['drops']} drops and {row['shifts']} shifts: the chat is too short to say anything")
        for mine, reference in zip(row["surprise"], plain["surprise"]):
            if mine > reference + arguments.allow:
                problems.append(f"{row['plan']}: {mine:.3f} nats a token, {plain['plan']} {reference:.3f}")
        if row["recalled"] < plain["recalled"] - row["asked"] / 4:
            problems.append(f"{row['plan']}: {row['recalled']} of {row['asked']} numbers recalled, {plain['plan']} {plain['recalled']}")
    if arguments.out:
        def cells(values, form):
            return ", ".join(form.format(value) for value in values)
        lines = ["# A long chat in a short context", "", f"`scripts/serving/long_chat.py --plans {arguments.plans} --turns {arguments.turns} -c {arguments.context} --tokens {arguments.tokens}`; "
                 f"{conditions()}.", "",
                 "The client drops the older half of its history when it does not fit; the server keeps the rest (--cache-reuse) and shifts its context when an answer runs beyond it "
                 "(--context-shift). Surprise: nats a token of the transcript under the plain f16 model, by quarters of the chat. Repeated: share of word 4-grams that one of the five "
                 "answers before has. Recalled: numbers told two turns before.", "",
                 "| cache | surprise by quarters | repeated by quarters | recalled | histories cut | context shifts | chunks moved | prompt tokens reused, computed | tokens said |",
                 "|---" * 9 + "|"]
        lines += [f"| {row['plan']} | {cells(row['surprise'], '{:.3f}')} | {cells(row['repeated'], '{:.1%}')} | {row['recalled']} of {row['asked']} | {row['drops']} | {row['shifts']} | "
                  f"{row['reused_chunks']} | {row['tokens_reused']}, {row['tokens_computed']} | {row['tokens_said']} |" for row in rows]
        write_results(arguments.out, "\n".join(lines) + "\n", rows)
    finish(problems)


if __name__ == "__main__":
    main()
