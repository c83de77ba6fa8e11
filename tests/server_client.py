#!/usr/bin/env python3
"""Talks to one llama-server and prints what it saw as JSON: server_client.py SERVER MODEL SLOT_FOLDER.

KVAQ_TEST_PLAN and KVAQ_TEST_PRELOAD become the server's KVAQ_PLAN and LD_PRELOAD. Two chats of three turns at the same time,
then a slot saved, erased and restored, then a broken slot file, then SIGINT. Judging is drop_in_test.cc's work."""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

QUESTIONS = ["In one English sentence: what is the capital of {}?", "Which language do people speak there?", "Name one famous city in that country."]
COUNTRIES = {"France": 0, "Japan": 1}
STORY = "Once upon a time there was a lighthouse keeper who counted the ships that passed. " * 6


def post(port, path, body, timeout=60):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def chat(port, country, slot, turns):
    messages = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question.format(country)})
        status, answer = post(port, "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 32, "id_slot": slot, "cache_prompt": True})
        if status != 200:
            turns.append({"status": status, "text": str(answer)})
            return
        message = answer["choices"][0]["message"]
        messages.append({"role": "assistant", "content": message["content"]})
        timings = answer["timings"]
        turns.append({"status": status, "text": message["content"], **{key: timings[key] for key in ("cache_n", "prompt_n", "predicted_n")}})


def complete(port):
    status, answer = post(port, "/completion", {"prompt": STORY, "n_predict": 24, "temperature": 0, "id_slot": 0, "cache_prompt": True})
    return {"status": status, "text": answer.get("content"), **{key: answer.get("timings", {}).get(key) for key in ("cache_n", "prompt_n")}}


def slots(port, folder):
    seen = {"first": complete(port)}
    seen["save"] = post(port, "/slots/0?action=save", {"filename": "story.bin"})
    seen["erase"] = post(port, "/slots/0?action=erase", {})
    seen["restore"] = post(port, "/slots/0?action=restore", {"filename": "story.bin"})
    seen["restored"] = complete(port)
    path = os.path.join(folder, "story.bin")
    with open(path, "rb") as file:
        data = bytearray(file.read())
    seen["file_bytes"] = len(data)
    data[len(data) * 2 // 3] ^= 0x40
    with open(os.path.join(folder, "broken.bin"), "wb") as file:
        file.write(data)
    seen["restore_broken"] = post(port, "/slots/0?action=restore", {"filename": "broken.bin"})
    seen["after_broken"] = complete(port)
    return seen


class Serving:
    """A llama-server on a free port, under the plan that KVAQ_TEST_PLAN names. Ended by SIGINT; its exit code and kvaq's lines stay."""

    def __init__(self, program, model, flags, prefix=None, preexec=None):
        environment = dict(os.environ)
        if "KVAQ_TEST_PLAN" in environment:
            environment["KVAQ_PLAN"] = environment["KVAQ_TEST_PLAN"]
            environment["LD_PRELOAD"] = environment["KVAQ_TEST_PRELOAD"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*(prefix or []), program, "-m", model, "--host", "127.0.0.1", "--port", str(self.port), "-t", "2", *flags],
                                        env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=preexec)

    def __enter__(self):
        deadline = time.time() + 60
        while self.process.poll() is None and time.time() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        return self

    def log_text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        exit_code = self.process.wait(timeout=30)
        return {"exit_code": exit_code, "kvaq_lines": [line for line in self.log_text().splitlines() if line.startswith("kvaq:")]}

    def __exit__(self, kind, error, trace):
        if kind is not None:
            sys.stderr.write(self.log_text()[-4000:])
        if self.process.poll() is None:
            self.process.kill()


def main():
    program, model, folder = sys.argv[1:]
    with Serving(program, model, ["-np", "2", "-c", "2048", "--slot-save-path", folder]) as server:
        seen = {"chats": {country: [] for country in COUNTRIES}}
        threads = [threading.Thread(target=chat, args=(server.port, country, slot, seen["chats"][country])) for country, slot in COUNTRIES.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen["slots"] = slots(server.port, folder)
        seen.update(server.end())
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
