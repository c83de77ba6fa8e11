#!/usr/bin/env python3
"""Drives one llama-server beyond its context or its sliding windows; prints what it saw as JSON.

  long_server_client.py shift SERVER MODEL          a small context with --context-shift, an answer several times as long
  long_server_client.py window SERVER MODEL TEXT    turns over a prompt longer than the model's sliding window

KVAQ_TEST_PLAN and KVAQ_TEST_PRELOAD as in server_client.py. Judging is long_server_test.cc's work."""
import json
import sys

from server_client import Serving, post

STORY = "The old lighthouse keeper sat down by the window, opened his diary and began to write the whole story of his long life. It began"


def completion(port, prompt, n_predict, **more):
    status, answer = post(port, "/completion", {"prompt": prompt, "n_predict": n_predict, "temperature": 0, "cache_prompt": True, **more}, timeout=240)
    timings = answer.get("timings", {})
    return {"status": status, "text": answer.get("content"), "truncated": answer.get("truncated"), "stop_type": answer.get("stop_type"),
            "tokens": answer.get("tokens_predicted"),
            **{key: timings.get(key) for key in ("cache_n", "prompt_n")}}


def shift(program, model):
    with Serving(program, model, ["-np", "1", "-c", "256", "--context-shift", "--keep", "16"]) as server:
        # Sampled, with repetition punished: a small model left to its likeliest words repeats itself, and repetition hides a broken cache.
        long = completion(server.port, STORY, 900, temperature=0.7, seed=7, top_k=40, ignore_eos=True, repeat_penalty=1.15, repeat_last_n=200)
        after = completion(server.port, "The capital of France is", 8)
        return {"long": long, "after": after, **server.end()}


def window(program, model, text):
    with open(text, encoding="utf-8") as file:
        words = file.read().split()
    first, second = " ".join(words[:1200]), " ".join(words[3000:4000])
    with Serving(program, model, ["-np", "1", "-c", "4096"]) as server:
        seen = {"first": completion(server.port, first, 24)}
        seen["again"] = completion(server.port, first, 24)
        seen["continued"] = completion(server.port, first + seen["first"]["text"] + " " + " ".join(words[1200:1260]), 24)
        seen["rewound"] = completion(server.port, " ".join(words[:700]), 24)
        seen["other"] = completion(server.port, second, 24)
        seen["back"] = completion(server.port, first, 24)  # from the server's prompt cache
        seen.update(server.end())
        return seen


def main():
    verb, *arguments = sys.argv[1:]
    print(json.dumps({"shift": shift, "window": window}[verb](*arguments)))


if __name__ == "__main__":
    main()
