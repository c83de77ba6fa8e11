#!/usr/bin/env python3
"""A long chat in a context much shorter than it, with context shift: is it as coherent as under llama.cpp's own f16 cache?

usage: scripts/serving/long_run.py [--plans ,#1000,f16,k4v4-rot-s4] [--turns 200] [-c 4096] [--out results/serving-long-run.md]

'' is llama.cpp itself; #N behind a plan's name: the same chat with other seeds of sampling, which shows how far two chats with one cache differ.
The client sends its whole history each turn and drops the older half of it when it does not fit any more; the server keeps what it has of the rest
(--cache-reuse: keys are moved, not computed again) and shifts its context when an answer runs beyond it (--context-shift). Every tenth turn tells a number,
and two turns later asks for it. Measures, by blocks of 20 turns:
  surprise   mean negative log-likelihood of the block's text under the plain f16 model (llama-perplexity -c 512: the second half of each piece of 512), nats a token
  repeated   share of the word 4-grams of an answer that one of the five answers before it has as well (a loop surprises little)
  recalled   how many of the told numbers came back
Exit code 1 if in the first or the second half of the chat a plan's mean surprise is more than --allow (.35) from the first chat's, or its repeated share more than .15
above; if it recalls less than that by more than a quarter of the questions, if nothing was shifted, or if a request fails."""
import argparse
import math
import os
import re
import statistics
import subprocess
import tempfile

from server import LLAMA_BIN, MODEL, THREADS, Server, conditions, finish, plan_name, write_results

TOPICS = ["the sea", "bread", "trains", "winter", "bees", "the moon", "music", "gardens", "mathematics", "mountains", "paper", "rivers", "bridges", "cats", "coffee", "glass",
          "deserts", "horses", "clocks", "forests", "languages", "salt", "ships", "volcanoes", "books", "rain", "islands", "iron", "chess", "dreams"]
FORMS = ["Tell me something interesting about {}.", "Why do people care about {}?", "Write two sentences of a story about {}.", "What would a child ask about {}?",
         "How has {} changed over the centuries?", "Describe {} to somebody who has never heard of it.", "What is the most common mistake about {}?"]
FIRST_NUMBER = 137
BLOCK = 20  # turns
SYSTEM = {"role": "system", "content": "You are a friendly and knowledgeable companion. You answer in two or three sentences."}


def question(turn):
    """The question of a turn, and the number that its answer must hold (or None)."""
    number = FIRST_NUMBER + 31 * (turn // 10)
    if turn % 10 == 3:
        return f"Please remember that my ticket number is {number}. What is my ticket number?", None
    if turn % 10 == 5:
        return "What is my ticket number?", str(number)
    return FORMS[turn % len(FORMS)].format(TOPICS[(turn * 7) % len(TOPICS)]), None


def chat(plan, first_seed, arguments):
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
            status, answer = server.post("/v1/chat/completions", {"messages": [SYSTEM, *history], "temperature": 0.6, "top_k": 40, "seed": first_seed + turn, "max_tokens": arguments.tokens,
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
    return turns, len(re.findall("context shift, n_keep", log))


def surprise(turns):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(f"{turn['asked']}\n{turn['said']}\n" for turn in turns))
        file.flush()
        result = subprocess.run([os.path.join(LLAMA_BIN, "llama-perplexity"), "-m", MODEL, "-f", file.name, "-c", "512", "-t", str(THREADS)], capture_output=True, text=True)
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


def halves(values):
    """Means of the first and the second half."""
    middle = (len(values) + 1) // 2
    return statistics.mean(values[:middle]), statistics.mean(values[middle:] or values)


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def judge(row, reference, allow):
    """What is wrong with a chat, compared with the first one."""
    name, problems = row["cache"], []
    if row["drops"] == 0 or row["shifts"] == 0:
        problems.append(f"{name}: {row['drops']} drops and {row['shifts']} shifts: the chat is too short to say anything")
    for part, mine, wanted in zip(("first", "second"), halves(row["surprise"]), halves(reference["surprise"])):
        if abs(mine - wanted) > allow:
            problems.append(f"{name}: {mine:.3f} nats a token in the {part} half, {reference['cache']} {wanted:.3f}")
    for part, mine, wanted in zip(("first", "second"), halves(row["repeated"]), halves(reference["repeated"])):
        if mine > wanted + 0.15:
            problems.append(f"{name}: {mine:.1%} repeated in the {part} half, {reference['cache']} {wanted:.1%}")
    if row["recalled"] < reference["recalled"] - row["asked"] / 4:
        problems.append(f"{name}: {row['recalled']} of {row['asked']} numbers recalled, {reference['cache']} {reference['recalled']}")
    return problems


def run(name, arguments):
    plan, _, seed = name.partition("#")
    turns, n_shifts = chat(plan, int(seed or 0), arguments)
    bounds = [*range(0, arguments.turns, BLOCK), arguments.turns]
    blocks = list(zip(bounds, bounds[1:]))
    asked = [turn["right"] for turn in turns if turn["right"] is not None]
    return {"cache": plan_name(plan) + (f", seeds from {seed}" if seed else ""), "surprise": [surprise(turns[a:b]) for a, b in blocks], "repeated": [repeated(turns, a, b) for a, b in blocks],
            "recalled": sum(asked), "asked": len(asked), "drops": sum(turn["dropped"] for turn in turns), "shifts": n_shifts,
            "tokens_reused": sum(turn["cache_n"] for turn in turns), "tokens_computed": sum(turn["prompt_n"] for turn in turns),
            "tokens_said": sum(turn["predicted_n"] for turn in turns), "last_turns": [f"{turn['asked']} {turn['said']}" for turn in turns[-3:]]}


def write_page(arguments, rows):
    def pair(values, form):
        return ", ".join(form.format(value) for value in halves(values))
    lines = ["# A chat of 200 turns in a short context" if arguments.turns == 200 else "# A long chat in a short context", "",
             f"`scripts/serving/long_run.py --plans {arguments.plans} --turns {arguments.turns} -c {arguments.context} --tokens {arguments.tokens}`; {conditions()}.", "",
             "One chat, several contexts long. The client drops the older half of its history when it does not fit; the server keeps the rest (--cache-reuse) and shifts its context "
             "when an answer runs beyond it (--context-shift). *Surprise*: nats a token of the chat's text under the plain f16 model, mean over blocks of "
             f"{BLOCK} turns (± standard deviation of a block), then the means of both halves of the chat. *Repeated*: share of an answer's word 4-grams that one of the five answers "
             "before has. *Recalled*: numbers told two turns before. Answers are sampled (temperature .6), so every chat is another one: how far two chats with the same cache differ is "
             "what the row with other seeds shows.", "",
             "| cache | surprise | first, second half | repeated: first, second half | recalled | histories cut | context shifts | prompt tokens reused, computed | tokens said |",
             "|---" * 9 + "|"]
    lines += [f"| {row['cache']} | {statistics.mean(row['surprise']):.3f} ± {spread(row['surprise']):.3f} | {pair(row['surprise'], '{:.3f}')} | {pair(row['repeated'], '{:.1%}')} | "
              f"{row['recalled']} of {row['asked']} | {row['drops']} | {row['shifts']} | {row['tokens_reused']}, {row['tokens_computed']} | {row['tokens_said']} |"
              for row in rows]
    lines += ["", f"Surprise by blocks of {BLOCK} turns:", "", "| cache | " + " | ".join(str(i * BLOCK + 1) + " on" for i in range(len(rows[0]["surprise"]))) + " |",
              "|---" * (1 + len(rows[0]["surprise"])) + "|"]
    lines += [f"| {row['cache']} | " + " | ".join(f"{value:.3f}" for value in row["surprise"]) + " |" for row in rows]
    same = [row for row in rows if not row["cache"].startswith("k")]  # caches of 16 bits
    if len(same) > 2:
        means = [statistics.mean(row["surprise"]) for row in same]
        lines += ["", f"The {len(same)} chats with 16-bit caches have means from {min(means):.3f} to {max(means):.3f} (standard deviation {statistics.stdev(means):.3f}): one chat says no more than that about a cache. "
                  "The more a chat repeats itself the less it surprises, so both columns belong together."]
    write_results(arguments.out, "\n".join(lines) + "\n", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",#1000,f16,k4v4-rot-s4")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--context", "-c", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most")
    parser.add_argument("--allow", type=float, default=0.35, help="nats; chats with one and the same cache differ by this much (results/serving-long-run.md)")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows, problems = [], []
    for name in arguments.plans.split(","):
        rows.append(run(name, arguments))
        problems += judge(rows[-1], rows[0], arguments.allow)
        print(", ".join(f"{key} {' '.join(f'{v:.3f}' for v in value) if key in ('surprise', 'repeated') else value}" for key, value in rows[-1].items() if key != "last_turns"), flush=True)
        if arguments.out:
            write_page(arguments, rows)
    finish(problems)


if __name__ == "__main__":
    main()
