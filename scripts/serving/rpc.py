#!/usr/bin/env python3
"""A model over two RPC servers (llama.cpp's --rpc) with our cache on the host: the same text as on one machine?

usage: scripts/serving/rpc.py [--plans ,f16,k4v4-rot-s4] [--tokens 48]     KVAQ_RPC_BIN: folder with llama-server and ggml-rpc-server of one llama.cpp
                                                                  built with -DGGML_RPC=ON (out/llama-rpc/bin; scripts/serving/build_rpc.sh makes it)

Two ggml-rpc-server on loopback hold all weights (-ngl 99). Wanted: every text as with the same cache on one machine, also of an answer that runs
beyond the context (--context-shift); the RPC servers hold the weights; nothing ends in an error. Exit code 77 if there is no such llama.cpp."""
import argparse
import os
import re
import subprocess
import time

from server import ROOT, Server, check, finish, free_port, plan_name, skip

PROMPTS = ["1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", "Monday, Tuesday, Wednesday, Thursday,", "The capital of France is", "Once upon a time there was a lighthouse keeper who"]


class RpcServer:
    def __init__(self, folder):
        self.port = free_port()
        self.process = subprocess.Popen([os.path.join(folder, "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(self.port), "-t", "1"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s*(\d+) kB", status.read())[1]) // 1024

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.process.kill()
        self.process.wait()


def texts(plan, program, flags, n_tokens, rpc_servers=()):
    with Server(plan, ["-c", "1024", "-np", "2", "--context-shift", *flags], program=program) as server:
        answers = []
        for prompt in PROMPTS:
            status, answer = server.post("/completion", {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "cache_prompt": False})
            if status != 200:
                raise RuntimeError(f"status {status}: {answer}")
            answers.append(answer["content"])
        # 512 tokens a slot: this runs beyond it
        status, answer = server.post("/completion", {"prompt": PROMPTS[0], "n_predict": 620, "temperature": 0, "ignore_eos": True, "n_keep": 8})
        answers.append(answer["content"] if status == 200 and answer["truncated"] else f"status {status}: {str(answer)[:200]}")
        lines = server.kvaq_lines()
        resident = [server.resident_bytes() // 2**20, *(rpc.resident_mib() for rpc in rpc_servers)]
        code, errors = server.interrupt()
    return answers, code, errors, lines, resident


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=",f16,k4v4-rot-s4")
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    folder = os.environ.get("KVAQ_RPC_BIN", os.path.join(ROOT, "out/llama-rpc/bin"))
    program = os.path.join(folder, "llama-server")
    if not os.access(program, os.X_OK) or not os.access(os.path.join(folder, "ggml-rpc-server"), os.X_OK):
        skip(f"no llama.cpp with RPC in {folder}; scripts/serving/build_rpc.sh makes one")
    for plan in arguments.plans.split(","):
        name = plan_name(plan)
        expected, code, errors, _, (resident_alone,) = texts(plan, program, [], arguments.tokens)
        check(f"{name}, one machine", code == 0 and not errors, f"exit code {code}, {errors}")
        with RpcServer(folder) as first, RpcServer(folder) as second:
            time.sleep(0.5)
            flags = ["--rpc", f"127.0.0.1:{first.port},127.0.0.1:{second.port}", "-ngl", "99"]
            found, code, errors, lines, (resident, *held) = texts(plan, program, flags, arguments.tokens, (first, second))
        check(f"{name}, two RPC servers", code == 0 and not errors, f"exit code {code}, {errors}")
        check(f"{name}, the same texts", found[:-1] == expected[:-1], f"{sum(a == b for a, b in zip(found[:-1], expected))} of {len(PROMPTS)}")
        check(f"{name}, the same text beyond the context", found[-1] == expected[-1], f"{len(os.path.commonprefix([found[-1], expected[-1]]))} of {len(expected[-1])} characters, "
              f"{found[-1][-40:]!r}")
        check(f"{name}, the RPC servers hold the weights", min(held) > 20, f"{held} MiB; llama-server {resident} MiB, on one machine {resident_alone} MiB")
        if plan:
            check(f"{name} says where attention runs", any("attention and its cache stay on the host" in line for line in lines), [line for line in lines if "device" in line])
    finish()


if __name__ == "__main__":
    main()
