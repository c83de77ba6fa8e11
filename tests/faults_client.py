#!/usr/bin/env python3
"""What a llama-server's slot files survive; prints what it saw as JSON.

  faults_client.py kill SERVER MODEL FOLDER ROUNDS   kill -9 at a random moment of a save, ROUNDS times
  faults_client.py names SERVER MODEL FOLDER         file names that lead elsewhere; under a plan also full and read-only folders

KVAQ_TEST_PLAN and KVAQ_TEST_PRELOAD as in server_client.py. Judging is faults_test.cc's work."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

from server_client import Serving, post

STORY = "Once upon a time there was a lighthouse keeper who counted the ships that passed. " * 30
NAMES = ["../out.bin", "..", ".", "", "/tmp/kvaq-faults-out.bin", "a/../../out.bin", "sub/out.bin", "sub\\out.bin", "out\n.bin", "out\u0000.bin", "~/out.bin ", " out.bin",
         "out.bin.", "C:\\out.bin", "\u2215out", "x" * 400]


def complete(port, prompt=STORY):
    status, answer = post(port, "/completion", {"prompt": prompt, "n_predict": 12, "temperature": 0, "id_slot": 0, "cache_prompt": True}, timeout=120)
    return {"status": status, "text": answer.get("content"), **{key: answer.get("timings", {}).get(key) for key in ("cache_n", "prompt_n")}}


def save(port, name="state.bin"):
    return post(port, "/slots/0?action=save", {"filename": name})


def restore(port, name="state.bin"):
    return post(port, "/slots/0?action=restore", {"filename": name})


def flags(folder):
    return ["-np", "1", "-c", "2048", "--slot-save-path", folder]


def kill(program, model, folder, rounds):
    choose = random.Random(20261126)
    seen = {"rounds": []}
    with Serving(program, model, flags(folder)) as server:
        seen["first"] = complete(server.port)
        start = time.time()
        seen["save"] = save(server.port)
        took = time.time() - start
        seen["save_seconds"] = took
    path = os.path.join(folder, "state.bin")
    seen["file_bytes"] = os.path.getsize(path)
    for _ in range(int(rounds)):
        with Serving(program, model, flags(folder)) as server:
            status, answer = restore(server.port)
            found = {"restore": status, "n_restored": answer.get("n_restored"), "again": complete(server.port)}
            # Every other file here must be whole as well, or be refused; the server goes on either way.
            found["left"] = {name: restore(server.port, name)[0] for name in os.listdir(folder) if name != "state.bin"}
            if found["left"]:
                restore(server.port)

            def save_over_and_over():
                try:
                    while True:
                        save(server.port)
                except OSError:
                    pass  # killed
                except ValueError:
                    pass  # killed in the middle of its answer

            saver = threading.Thread(target=save_over_and_over)
            saver.start()
            time.sleep(choose.random() * took * 3)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            saver.join()
            seen["rounds"].append(found)
    with Serving(program, model, flags(folder)) as server:
        seen["last"] = restore(server.port)[0]
        seen["last_text"] = complete(server.port)["text"]
        seen.update(server.end())
    return seen


def in_own_mounts(command, folder):
    """The server's command with something mounted on its slot folder that nobody else sees; None where that may not be done."""
    prefix = ["unshare", "-m", "sh", "-c", f"{command} && exec \"$0\" \"$@\""]
    tried = subprocess.run([*prefix, "true"], env={**os.environ, "F": folder}, stdin=subprocess.DEVNULL, capture_output=True)
    return prefix if tried.returncode == 0 else None


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))


def names(program, model, folder):
    os.environ["F"] = folder
    seen = {}
    above = os.path.dirname(os.path.abspath(folder.rstrip("/")))
    with Serving(program, model, flags(folder)) as server:
        seen["first"] = complete(server.port, "Hello there, how are you")
        before = sorted(os.listdir(above))
        seen["names"] = [[name[:40], save(server.port, name)[0], restore(server.port, name)[0]] for name in NAMES]
        seen["made_elsewhere"] = [name for name in sorted(os.listdir(above)) if name not in before] + \
            [name for name in ("/tmp/kvaq-faults-out.bin",) if os.path.exists(name)]
        seen["made_here"] = sorted(os.listdir(folder))
        seen.update(server.end())
    if "KVAQ_TEST_PLAN" not in os.environ:
        return seen  # the rest is about our files
    # A slot folder of 2 MiB: a short slot fits (f16 pages of 64 tokens: 1.4 MiB), a long one does not.
    prefix = in_own_mounts("mount -t tmpfs -o size=2m tmpfs \"$F\"", folder)
    seen["full_by"] = "tmpfs" if prefix else "RLIMIT_FSIZE"
    with Serving(program, model, flags(folder), prefix=prefix, preexec=None if prefix else limit_file_size) as server:
        short = complete(server.port, "Hello there, how are you")
        full = {"save_short": save(server.port)[0], "long": complete(server.port)["status"], "save_long": save(server.port)[0]}
        full["files"] = os.listdir(f"/proc/{server.process.pid}/root{os.path.abspath(folder)}") if prefix else [n for n in os.listdir(folder) if "state" in n]
        full["restore_short"] = restore(server.port)[0]
        full["same_text"] = complete(server.port, "Hello there, how are you")["text"] == short["text"]
        full.update(server.end())
        seen["full"] = full
    prefix = in_own_mounts("mount --bind \"$F\" \"$F\" && mount -o remount,ro,bind \"$F\"", folder)
    seen["read_only_by"] = "mount" if prefix else None
    if prefix:
        with Serving(program, model, flags(folder), prefix=prefix) as server:
            first = complete(server.port, "Hello there, how are you")
            read_only = {"save": save(server.port)[0], "same_text": complete(server.port, "Hello there, how are you")["text"] == first["text"]}
            read_only.update(server.end())
            seen["read_only"] = read_only
    return seen


def main():
    verb, *arguments = sys.argv[1:]
    print(json.dumps({"kill": kill, "names": names}[verb](*arguments)))


if __name__ == "__main__":
    main()
