#!/usr/bin/env python3
"""Reads the metrics of one llama-server as it works; prints what it saw as JSON: metrics_client.py SERVER MODEL SLOT_FOLDER.

KVAQ_TEST_PLAN and KVAQ_TEST_PRELOAD as in server_client.py; KVAQ_METRICS reaches the server. Judging is metrics_test.cc's work."""
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from prometheus_text import parse
from server_client import STORY, Serving, post

SYSTEM = "You are a careful librarian who answers in one sentence and never invents the title of a book. " * 12


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers.get("Content-Type"), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, None, error.read().decode(errors="replace")


def flat(families):
    """{"name{label=value,...}": value}, without the context, of which there is one."""
    out = {}
    for name, samples in families.items():
        for labels, value in samples.items():
            assert ("context", "0") in labels, labels
            rest = ",".join(f"{key}={text}" for key, text in labels if key != "context")
            out[name + ("{" + rest + "}" if rest else "")] = value
    return out


def scrape(url):
    return flat(parse(get(url)[2]))


def cached_by_slots(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/slots", timeout=10) as answer:
        return sum(slot.get("n_prompt_tokens", 0) for slot in json.load(answer))


def main():
    program, model, folder = sys.argv[1:]
    with Serving(program, model, ["-np", "4", "-c", "4096", "-kvu", "--slot-save-path", folder]) as server:
        url = re.search(r"kvaq: metrics at (http://\S+/metrics)", server.log_text())[1]
        seen = {"url": url}
        seen["status"], seen["content_type"], _ = get(url)
        seen["elsewhere"] = get(url.replace("/metrics", "/"))[0]
        seen["start"] = scrape(url)
        stop, scraped = threading.Event(), []

        def scrape_all_the_time():
            while not stop.is_set():
                scraped.append(scrape(url))
                time.sleep(0.002)

        scraper = threading.Thread(target=scrape_all_the_time)
        scraper.start()
        status, answer = post(server.port, "/v1/chat/completions",
                              {"messages": [{"role": "user", "content": STORY + " Go on."}], "temperature": 0, "max_tokens": 80, "id_slot": 0})
        stop.set()
        scraper.join()
        seen["chat"] = {"status": status, **{key: answer["timings"][key] for key in ("prompt_n", "predicted_n")}}
        seen["scrapes_meanwhile"] = len(scraped)
        seen["token_counts_meanwhile"] = sorted({now["kvaq_cached_tokens"] for now in scraped})
        seen["torn"] = [now for now in scraped if now["kvaq_cached_tokens"] == 0 and now["kvaq_cache_bytes{kind=f16}"] > 0]
        seen["after_chat"] = scrape(url)
        seen["slots"] = cached_by_slots(server.port)
        post(server.port, "/slots/0?action=save", {"filename": "a.bin"})
        post(server.port, "/slots/0?action=restore", {"filename": "a.bin"})
        with open(os.path.join(folder, "bad.bin"), "wb") as file:
            file.write(b"nothing")
        post(server.port, "/slots/0?action=restore", {"filename": "bad.bin"})
        for slot in range(4):
            post(server.port, f"/slots/{slot}?action=erase", {})
        seen["erased"] = scrape(url)
        # One prompt for four answers: llama-server copies the prompt's slot to the three others (llama_memory_seq_cp).
        most = {}

        def watch_sharing():
            while not shared_done.is_set():
                now = scrape(url)
                if now["kvaq_cache_shared_bytes"] > most.get("kvaq_cache_shared_bytes", 0):
                    most.clear()
                    most.update(now)
                time.sleep(0.002)

        shared_done = threading.Event()
        watcher = threading.Thread(target=watch_sharing)
        watcher.start()
        status, answer = post(server.port, "/completion", {"prompt": SYSTEM, "n_cmpl": 4, "n_predict": 40, "temperature": 0.8, "seed": 3})
        shared_done.set()
        watcher.join()
        seen["four"] = {"status": status, "n": len(answer) if isinstance(answer, list) else 0}
        seen["shared"] = most
        # The same port again: one clear error, and the first server goes on.
        environment = {**os.environ, "KVAQ_PLAN": os.environ["KVAQ_TEST_PLAN"], "LD_PRELOAD": os.environ["KVAQ_TEST_PRELOAD"],
                       "KVAQ_METRICS": url.removeprefix("http://").removesuffix("/metrics")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        second = subprocess.run([program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "256"], env=environment, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, errors="replace", timeout=60)
        seen["second"] = {"exit_code": second.returncode, "errors": [line for line in second.stderr.splitlines() if line.startswith("kvaq: error")]}
        seen["goes_on"] = get(url)[0]
        seen.update(server.end())
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
