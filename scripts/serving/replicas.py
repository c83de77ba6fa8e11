#!/usr/bin/env python3
"""Two replicas with one plan file behind nginx, as in examples/nginx-replicas.conf (its ports replaced by free ones).

usage: scripts/serving/replicas.py [--plan FILE.plan.gguf] [--users 8]

Wanted: a user's turns go to one replica, which reuses what it has cached; both replicas are used; texts are those of one server; answers are streamed
through; when a replica is killed all its users are served by the other, and again by it once it is back. Exit code 77 if nginx is not installed."""
import argparse
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time

from server import MODEL, ROOT, Server, check, finish, free_port, kvaq_program, skip

FLAGS = ["-c", "4096", "-np", "2"]
COUNTRIES = ["France", "Japan", "Italy", "Egypt", "Spain", "Norway", "Peru", "India", "Kenya", "Greece", "Poland", "Chile"]


def ask(port, user, messages, stream=False):
    """Replica, text, tokens of the prompt that were cached and all of them; for a stream the replica, the number of chunks and the seconds between the first and the last."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"messages": messages, "temperature": 0, "max_tokens": 24, "stream": stream, "cache_prompt": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", "X-User": user})
    answer = connection.getresponse()
    replica = answer.getheader("X-Replica", "none").split(",")[-1].strip()
    if answer.status != 200:
        raise RuntimeError(f"{user}: status {answer.status}: {answer.read()[:300]}")
    if not stream:
        value = json.load(answer)
        connection.close()
        timings = value["timings"]
        return replica, value["choices"][0]["message"]["content"], timings["cache_n"], timings["cache_n"] + timings["prompt_n"]
    times = [time.time() for line in answer if line.startswith(b"data: {")]
    connection.close()
    return replica, len(times), times[-1] - times[0]


def choose_users(port, n_users):
    """Half of them at home on each replica, so that both have work whatever the hash of their ports says."""
    homes = {}
    for i in range(1000):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health", headers={"X-User": f"user-{i}"})
        homes.setdefault(connection.getresponse().getheader("X-Replica", "none"), []).append(f"user-{i}")
        connection.close()
        if len(homes) == 2 and all(len(users) >= (n_users + 1) // 2 for users in homes.values()):
            break
    check("both replicas get users", len(homes) == 2, {replica: len(users) for replica, users in homes.items()})
    return [user for users in homes.values() for user in users[:(n_users + 1) // 2]][:n_users]


def first_turn(i):
    # Prompts that begin alike would take each other's slots (llama-server's --slot-prompt-similarity), so every user's begins differently.
    persona = f"{COUNTRIES[i % len(COUNTRIES)]} is what this assistant number {i} knows most about. It answers in one short sentence."
    return [{"role": "system", "content": persona}, {"role": "user", "content": f"In one English sentence: what is the capital of {COUNTRIES[i % len(COUNTRIES)]}?"}]


def start_nginx(folder, port, replicas):
    with open(os.path.join(ROOT, "examples/nginx-replicas.conf")) as file:
        text = file.read()
    for old, new in (("127.0.0.1:8080", f"127.0.0.1:{port}"), ("127.0.0.1:8081", f"127.0.0.1:{replicas[0].port}"), ("127.0.0.1:8082", f"127.0.0.1:{replicas[1].port}"),
                     ("/tmp/kvaq-nginx.pid", os.path.join(folder, "nginx.pid"))):
        text = text.replace(old, new)
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w") as file:
        file.write(text)
    nginx = subprocess.Popen(["nginx", "-p", folder, "-e", "stderr", "-c", path, "-g", "daemon off;"], stdin=subprocess.DEVNULL)
    deadline = time.time() + 20
    while time.time() < deadline and nginx.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return nginx
        except OSError:
            time.sleep(0.05)
    nginx.kill()
    raise RuntimeError(f"nginx did not start with {path}")


class Replica(Server):
    """A server that can be started again on its port."""

    def __init__(self, plan, port=None):
        import server
        real = server.free_port
        if port is not None:
            server.free_port = lambda: port
        try:
            super().__init__(plan, FLAGS, threads=1)
        finally:
            server.free_port = real


def session(plan, n_users, folder):
    with Server(plan, FLAGS, threads=1) as single:
        expected = [single.post("/v1/chat/completions", {"messages": first_turn(i), "temperature": 0, "max_tokens": 24})[1]["choices"][0]["message"]["content"] for i in range(n_users)]
    with Replica(plan) as first, Replica(plan) as second:
        port = free_port()
        nginx = start_nginx(folder, port, [first, second])
        try:
            users = choose_users(port, n_users)
            chats = [first_turn(i) for i in range(n_users)]
            home, first_tokens, same_text = [], [], 0
            for i, user in enumerate(users):
                replica, text, _, n_tokens = ask(port, user, chats[i])
                home.append(replica)
                first_tokens.append(n_tokens)
                same_text += text == expected[i]
                chats[i] += [{"role": "assistant", "content": text}, {"role": "user", "content": "Which language do people speak there?"}]
            check("both replicas are used", len(set(home)) == 2, {replica: home.count(replica) for replica in sorted(set(home))})
            check("texts are those of one server", same_text == n_users, f"{same_text} of {n_users}")
            stayed = [ask(port, user, chats[i]) for i, user in enumerate(users)]
            check("a user stays with a replica", [turn[0] for turn in stayed] == home, f"{sum(a[0] == b for a, b in zip(stayed, home))} of {n_users}")
            reused = [turn[2] for turn in stayed]
            check("second turns reuse the first", all(cached >= n - 1 for cached, n in zip(reused, first_tokens)), f"{reused} tokens, first prompts had {first_tokens}")
            _, n_chunks, seconds = ask(port, users[0], chats[0], stream=True)
            check("answers are streamed through", n_chunks > 5 and seconds > 0.02, f"{n_chunks} chunks over {seconds:.2f} s")

            first.process.kill()
            first.process.wait()
            moved = [ask(port, user, chats[i])[0] for i, user in enumerate(users)]
            check("one replica killed: the other serves all", set(moved) == {f"127.0.0.1:{second.port}"}, {replica: moved.count(replica) for replica in sorted(set(moved))})
            with Replica(plan, first.port):
                deadline = time.time() + 30
                while time.time() < deadline:
                    back = [ask(port, user, chats[i])[0] for i, user in enumerate(users)]
                    if back == home:
                        break
                    time.sleep(1)
                check("back again, it gets its users back", back == home, {replica: back.count(replica) for replica in sorted(set(back))})
            code, errors = second.interrupt()
            check("the other ends cleanly", code == 0 and not errors, f"exit code {code}, {errors}")
        finally:
            nginx.terminate()
            nginx.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", help="a plan file; without it one of k4v4-rot-s4 is made")
    parser.add_argument("--users", type=int, default=8)
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        skip("nginx is not installed (Debian's package nginx-light)")
    with tempfile.TemporaryDirectory() as folder:
        plan = arguments.plan
        if plan is None:
            plan = os.path.join(folder, "shared.plan.gguf")
            subprocess.run([kvaq_program(), "plan", "-m", MODEL, "--policy", "uniform:k4v4-rot-s4", "-o", plan], check=True, stdout=subprocess.DEVNULL)
        session(plan, arguments.users, folder)
    finish()


if __name__ == "__main__":
    main()
