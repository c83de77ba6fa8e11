#!/usr/bin/env python3
"""Load: many streaming clients on a few slots, cancelling at random, each with a secret of its own.

usage: scripts/serving/load.py [--plans ,f16,k4v4-rot-s4] [--clients 64] [--slots 4] [--seconds 600] [--seed 1] [--out results/serving-load.md]

Wanted of every server ('' is llama-server itself): it lives, ends with exit code 0 and says no 'kvaq: error'; no answer holds a secret of another prompt; most
finished answers hold their own; resident memory after the warm-up (the first third) stays within 2 % (20 % in runs of less than
5 minutes, where the RAM cache of prompts is not full yet); all slots are free at the end. A quarter of the requests
repeats one of 16 prompts at temperature 0: how many of them got more than one text is counted, since llama.cpp's own products round differently in every batch; one at a time
and without reuse of the cache they must get one text each. Exit code 1 if something wanted is missing."""
import argparse
import collections
import os
import random
import re
import statistics
import threading
import time

from server import ROOT, Server, conditions, finish, plan_name, write_results

SECRET = re.compile(r"[A-Z]{3}-\d{5}")
SYSTEM = ("You are the night porter of a large hotel. Every guest has deposited one item in the safe and got one code for it. You repeat the guest's own code when the guest asks "
          "for it, and never the code of anybody else. You are brief and polite, and you do not invent codes.\n\n")
ITEMS = ["a silver watch", "three letters", "an old map", "a violin", "two passports", "a box of coins", "a painting", "a manuscript"]
NAMES = ["Anna", "Boris", "Chloe", "David", "Elena", "Farid", "Greta", "Hugo", "Irina", "Jonas", "Karin", "Louis", "Maria", "Nils", "Olga", "Pedro"]
N_REPEATED = 16


class Prompts:
    """Every prompt has a secret that no other has. Thread-safe."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.issued = set()
        self.repeated = [self.fresh() for _ in range(N_REPEATED)]

    def fresh(self):
        with self.lock:
            while True:
                letters = "".join(self.random.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3))
                secret = f"{letters}-{self.random.randrange(10000, 100000)}"
                if secret not in self.issued:
                    break
            self.issued.add(secret)
            name, item = self.random.choice(NAMES), self.random.choice(ITEMS)
            story = f"The guest talked for a while about the weather, the trains and {self.random.choice(ITEMS)}. " * self.random.randrange(0, 8)
        return secret, (f"{SYSTEM}Guest: My name is {name}. I left {item} here and my code is {secret}. {story}\nPorter: Thank you, {name}.\n"
                        f"Guest: Please repeat my code.\nPorter: Your code is")


class Load:
    def __init__(self, server, arguments):
        self.server = server
        self.arguments = arguments
        self.prompts = Prompts(arguments.seed)
        self.lock = threading.Lock()
        self.texts = collections.defaultdict(collections.Counter)  # of the repeated prompts
        self.count = collections.Counter()
        self.mixed = []
        self.failures = []
        self.memory = []
        self.end = 0.0

    def ask(self, secret, prompt, repeated, rng):
        """One streamed request; None if it was cancelled."""
        cancel_after = rng.randrange(0, 20) if rng.random() < 0.3 else None
        timeout = max(5.0, self.end + 10 - time.time())  # at the end whoever still waits leaves
        body = {"prompt": prompt, "n_predict": rng.choice([16, 24, 48]) if not repeated else 24, "temperature": 0 if repeated else 0.6, "seed": rng.randrange(2**31), "cache_prompt": True}
        text, n, finished = "", 0, False
        if cancel_after == 0:  # before the first token: often while it waits for a slot
            events = self.server.stream("/completion", body, timeout=rng.uniform(0.05, 1.0))
        else:
            events = self.server.stream("/completion", body, timeout)
        try:
            for event in events:
                text += event["content"]
                n += 1
                finished = event["stop"]
                if cancel_after is not None and n >= max(1, cancel_after) or time.time() > self.end:
                    break
        except TimeoutError:
            if cancel_after != 0 and time.time() < self.end:
                raise
        finally:
            events.close()
        return text if finished else None, text

    def client(self, index):
        rng = random.Random(f"{self.arguments.seed} {index}")
        while time.time() < self.end:
            repeated = rng.random() < 0.25
            secret, prompt = rng.choice(self.prompts.repeated) if repeated else self.prompts.fresh()
            try:
                finished, text = self.ask(secret, prompt, repeated, rng)
            except Exception as error:  # noqa: BLE001: any failure of a request is a finding
                with self.lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)
                continue
            with self.lock:
                self.count["finished" if finished is not None else "cancelled"] += 1
                foreign = [found for found in SECRET.findall(text) if found != secret and found in self.prompts.issued]
                if foreign:
                    self.mixed.append(f"{secret} got {foreign}: {text!r}")
                if finished is not None:
                    self.count["own secret"] += secret in text
                    if repeated:
                        self.texts[secret][finished] += 1

    def watch(self):
        start = time.time()
        while time.time() < self.end:
            self.memory.append((time.time() - start, self.server.resident_bytes()))
            time.sleep(min(1.0, self.arguments.seconds / 100))

    def run(self):
        self.end = time.time() + self.arguments.seconds
        threads = [threading.Thread(target=self.client, args=(index,)) for index in range(self.arguments.clients)] + [threading.Thread(target=self.watch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def growth(self):
        """Mean resident memory of the last sixth over that of the first sixth after the warm-up (the first third), less 1."""
        third, sixth = self.arguments.seconds / 3, self.arguments.seconds / 6
        first = [bytes for seconds, bytes in self.memory if third <= seconds < third + sixth]
        last = [bytes for seconds, bytes in self.memory if seconds >= self.arguments.seconds - sixth]
        return statistics.mean(last) / statistics.mean(first) - 1, first[0], max(bytes for seconds, bytes in self.memory if seconds >= third)


def one_at_a_time(server, prompts):
    """Number of the repeated prompts that get more than one text when nobody else asks and nothing is reused."""
    differing = 0
    for _, prompt in prompts[:4]:
        seen = {server.post("/completion", {"prompt": prompt, "n_predict": 24, "temperature": 0, "cache_prompt": False})[1]["content"] for _ in range(3)}
        differing += len(seen) > 1
    return differing


def in_company(server, prompts, others):
    """Number of prompts that get another text, at temperature 0, when three other requests run beside them than when they are alone."""
    def ask(prompt, seed, temperature, answers=None):
        body = {"prompt": prompt, "n_predict": 24, "temperature": temperature, "seed": seed, "cache_prompt": False, "ignore_eos": True}
        content = server.post("/completion", body)[1]["content"]
        if answers is not None:
            answers.append(content)

    differing = 0
    for index, (_, prompt) in enumerate(prompts):
        alone, together = [], []
        ask(prompt, 0, 0, alone)
        threads = [threading.Thread(target=ask, args=(others.fresh()[1], 3 * index + i, 0.6)) for i in range(3)] + [threading.Thread(target=ask, args=(prompt, 0, 0, together))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        differing += alone != together
    return differing


def company(plan, arguments):
    prompts = Prompts(arguments.seed)
    with Server(plan, ["-np", "4", "-c", "4096"]) as server:
        differing = in_company(server, prompts.repeated[:8], prompts)
    print(f"{plan_name(plan)}: {differing} of 8 prompts at temperature 0 get another text beside three other requests than alone", flush=True)


def serve(plan, arguments):
    # The RAM cache of prompts is limited, so that it is full before the warm-up ends; every waiting client holds one HTTP thread.
    flags = ["-np", str(arguments.slots), "-c", str(1024 * arguments.slots), "--threads-http", str(arguments.clients + 4), "--cache-ram", "16", "--slots"]
    problems = []
    with Server(plan, flags) as server:
        load = Load(server, arguments)
        load.run()
        alive = server.process.poll() is None
        if not alive:
            raise RuntimeError(f"{plan_name(plan)}: the server died: {server.log_text()[-3000:]}")
        free = server.idle(120)
        alone = one_at_a_time(server, load.prompts.repeated)
        growth, after_warm_up, peak = load.growth()
        code, errors = server.interrupt()
    finished = load.count["finished"]
    repeats = [len(texts) for texts in load.texts.values() if sum(texts.values()) > 1]
    usual = sum(max(texts.values()) for texts in load.texts.values()) / max(1, sum(sum(texts.values()) for texts in load.texts.values()))
    row = {"plan": plan_name(plan), "seconds": arguments.seconds, "clients": arguments.clients, "slots": arguments.slots, "finished": finished,
           "cancelled": load.count["cancelled"], "own_secret": load.count["own secret"] / max(1, finished), "mixed": len(load.mixed), "failures": len(load.failures),
           "resident_after_warm_up": after_warm_up, "resident_peak": peak, "growth": growth, "repeated_prompts": len(repeats), "with_several_texts": sum(n > 1 for n in repeats),
           "usual_text": usual, "alone_with_several_texts": alone, "exit_code": code, "kvaq_errors": len(errors)}
    for wanted, problem in ((code == 0, f"exit code {code}"), (not errors, f"errors: {errors[:3]}"), (not load.mixed, f"mixed answers: {load.mixed[:3]}"),
                            (not load.failures, f"{len(load.failures)} failed requests: {load.failures[:3]}"), (free, "slots stay busy"),
                            (finished > arguments.seconds / 20, f"only {finished} requests finished"), (load.count["cancelled"] > 0, "nothing was cancelled"),
                            (row["own_secret"] > 0.5, f"only {row['own_secret']:.0%} of the answers hold their own secret"),
                            (abs(growth) <= (0.02 if arguments.seconds >= 300 else 0.2), f"resident memory changes by {growth:.1%}"), (alone == 0, f"{alone} prompts get several texts when asked alone")):
        if not wanted:
            problems.append(f"{row['plan']}: {problem}")
    return row, problems


def write_page(arguments, rows):
    lines = ["# Load", "", f"`scripts/serving/load.py --plans {arguments.plans} --clients {arguments.clients} --slots {arguments.slots} --seconds {arguments.seconds:g} "
             f"--seed {arguments.seed}`; {conditions()}.", "",
             "Streaming clients that ask again as soon as they are answered; 30 % of the requests are cancelled, some while they wait for a slot. Every prompt holds a secret; "
             "an answer that holds another prompt's is *mixed*. Memory: VmRSS of the server, first and last sixth after a warm-up of a third.", "",
             "| cache | finished | cancelled | failed | mixed | hold their own secret | resident after warm-up, peak (MiB) | change | repeated prompts with several texts | "
             "answers with the usual text | the same alone |", "|---" * 11 + "|"]
    lines += [f"| {row['plan']} | {row['finished']} | {row['cancelled']} | {row['failures']} | {row['mixed']} | {row['own_secret']:.0%} | "
              f"{row['resident_after_warm_up'] / 2**20:.0f}, {row['resident_peak'] / 2**20:.0f} | {row['growth']:+.2%} | {row['with_several_texts']} of {row['repeated_prompts']} | "
              f"{row['usual_text']:.1%} | {row['alone_with_several_texts']} of 4 |" for row in rows]
    lines += ["", "Several texts at temperature 0: llama.cpp's matrix products round differently in a batch of another size, and who else is in a batch depends on the load "
              "(`load.py --company` shows it with four requests). Our attention gives the same bits whoever else is there; but under a quantized plan a reused prefix that ends inside a sealed tile "
              "is read as it was sealed there, so texts also depend on what the slot held before."]
    write_results(arguments.out, "\n".join(lines) + "\n", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",f16,k4v4-rot-s4")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--company", action="store_true", help="only this: how many prompts get another text at temperature 0 when other requests share their batches")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if arguments.company:
        for plan in arguments.plans.split(","):
            company(plan, arguments)
        return
    rows, problems = [], []
    for plan in arguments.plans.split(","):
        row, found = serve(plan, arguments)
        rows.append(row)
        problems += found
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True)
        if arguments.out:  # after each, since all of them take long
            write_page(arguments, rows)
    finish(problems)


if __name__ == "__main__":
    main()
