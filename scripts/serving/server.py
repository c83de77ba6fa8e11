"""llama-server, plain or through `kvaq serve`, for the scripts of this folder. Python's standard library only.

Every server listens on a free loopback port and is ended by its owner. Programs, model and threads can be changed by the variables
KVAQ (build/release/bin/kvaq or build/dev/bin/kvaq), KVAQ_LLAMA_BIN (.deps/llama/bin), MODEL and THREADS (2; 1 is faster where all cores are busy)."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.environ.get("MODEL", os.path.join(ROOT, ".deps/model/SmolLM2-135M-Instruct.Q4_1.gguf"))
LLAMA_BIN = os.environ.get("KVAQ_LLAMA_BIN", os.path.join(ROOT, ".deps/llama/bin"))
THREADS = int(os.environ.get("THREADS", "2"))
SKIPPED = 77  # exit code of a script that could not run here; its last line says why


def fail(message):
    sys.exit(f"error: {message}")


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


_failures = []


def check(what, good, seen):
    """One line of what was seen; finish() remembers what was not good."""
    print(f"{'ok  ' if good else 'FAIL'} {what}: {seen}", flush=True)
    if not good:
        _failures.append(what)


def finish(problems=()):
    """Ends the script: a line for each problem, exit code 1 if there is one or a check has failed."""
    for problem in problems:
        print(f"FAIL {problem}")
    sys.exit(1 if problems or _failures else 0)


def kvaq_program():
    """KVAQ, else the release build's, else the dev build's."""
    candidates = [os.environ["KVAQ"]] if "KVAQ" in os.environ else [os.path.join(ROOT, f"build/{preset}/bin/kvaq") for preset in ("release", "dev")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    fail(f"kvaq is not built: wanted one of {', '.join(candidates)}. Run make run, or set KVAQ")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def plan_name(plan):
    return plan or "llama.cpp f16"


class Server:
    """`plan` empty: llama-server itself, its own f16 cache. Else `kvaq serve --plan PLAN`, with the same flags."""

    def __init__(self, plan, flags, model=None, threads=THREADS, program=None):
        self.plan = plan
        self.port = free_port()
        command = [kvaq_program(), "serve", "--plan", plan] if plan else [program or os.path.join(LLAMA_BIN, "llama-server")]
        environment = {name: value for name, value in os.environ.items() if name not in ("KVAQ_PLAN", "LD_PRELOAD")}
        environment["KVAQ_LLAMA_BIN"] = os.path.dirname(program) if program else LLAMA_BIN
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        self.log = tempfile.TemporaryFile()
        self.command = [*command, "-m", model or MODEL, "--host", "127.0.0.1", "--port", str(self.port), "-t", str(threads), *flags]
        self.process = subprocess.Popen(self.command, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        deadline = time.time() + 180
        while time.time() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        log = self.log_text()
        self.__exit__(None, None, None)
        raise RuntimeError(f"the server did not start: {' '.join(self.command)}\n{log[-4000:]}")

    def __exit__(self, kind, error, trace):
        if kind is not None:
            sys.stderr.write(self.log_text()[-4000:])
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def get(self, path, timeout=30):
        return self.request("GET", path, None, timeout)

    def post(self, path, body, timeout=600):
        return self.request("POST", path, body, timeout)

    def request(self, method, path, body, timeout):
        """Status and answer (parsed if it is JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except json.JSONDecodeError:
            return answer.status, text

    def stream(self, path, body, timeout=600):
        """Events of a streamed answer, one by one; leaving early closes the connection, as a client that cancels does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{path}: status {answer.status}: {answer.read().decode(errors='replace')[:300]}")
            for line in answer:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def log_text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def kvaq_lines(self):
        return [line for line in self.log_text().splitlines() if line.startswith("kvaq:")]

    def idle(self, seconds):
        """Waits until no slot works any more; whether that took less than so long."""
        deadline = time.time() + seconds
        while any(slot["is_processing"] for slot in self.get("/slots")[1]):
            if time.time() > deadline:
                return False
            time.sleep(0.1)
        return True

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s*(\d+) kB", status.read())[1]) * 1024

    def interrupt(self):
        """Ends it as a person would; the exit code, and what it says it had done wrong."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        return code, [line for line in self.kvaq_lines() if line.startswith("kvaq: error")]


def write_results(path, text, values):
    """The Markdown page and, beside it, the same as JSON."""
    with open(path, "w") as file:
        file.write(text)
    with open(os.path.splitext(path)[0] + ".json", "w") as file:
        json.dump(values, file, indent=1)
        file.write("\n")


def conditions():
    """What a result depends on: commit, processor, model."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with open("/proc/cpuinfo") as info:
        processor = re.search(r"model name\s*:\s*(.*)", info.read())
    return f"{os.path.basename(MODEL)}, {processor[1] if processor else 'unknown processor'}, {THREADS} thread{'s' if THREADS > 1 else ''}, kvaq at {commit or 'no commit'}"
