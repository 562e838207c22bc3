"""Starts the stub and foreman on free ports in a temporary folder for one test, and ends them after it.

Called by pytest only. A test asks for `place` (or for `places`, to start one with flags of its own) and talks to
foreman as a user would: with the official client, and with the `foreman` binary. Where FOREMAN_TEST_OLLAMA names a
running Ollama, foreman stands in front of that instead of the stub; what needs the stub then skips and says why.
"""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import ollama
import pytest
import results

# How long anything may take before it counts as never: far above what a loaded machine needs.
DEADLINE_S = 30

# The pause between two looks at a state that only a look can tell.
LOOK_PAUSE_S = 0.01

# A daemon that outlives the suite ends by itself.
STUB_LIFE_S = 900

REAL_OLLAMA = os.environ.get("FOREMAN_TEST_OLLAMA", "")
MODEL = os.environ.get("FOREMAN_TEST_MODEL", "") if REAL_OLLAMA else "llama3"
EMBED_MODEL = os.environ.get("FOREMAN_TEST_EMBED_MODEL", "") if REAL_OLLAMA else "embed"
BINARIES = Path(os.environ.get("FOREMAN_TEST_BINARIES", "target/debug"))

# `NAME=LOAD_MS,SIZE_MB,CAPABILITIES`, see the stub's --help.
STUB_MODELS = [
    "--model=llama3=20,256,completion+tools",
    "--model=qwen3=20,256,completion+tools+thinking",
    "--model=plain=20,256,completion",
    "--model=embed=5,64,embedding",
    "--pullable=gemma3=20,256,completion",
]


def pytest_configure(config):
    """Takes the variables of whoever runs the suite out of the way of the clients and the daemons."""
    config.addinivalue_line("markers", "scenario(name): a column of the table in docs/clients.md")
    if REAL_OLLAMA and not MODEL:
        raise pytest.UsageError("FOREMAN_TEST_OLLAMA is set, so FOREMAN_TEST_MODEL must name one of its chat models")
    for name in list(os.environ):
        if name.startswith(("FOREMAN_", "OLLAMA_")) and not name.startswith("FOREMAN_TEST_"):
            del os.environ[name]
    # Loopback never goes through a proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


def until(look, wanted, what, deadline_s=DEADLINE_S):
    """Looks until `wanted(look())` holds and returns what was seen; fails with the last look after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        seen = look()
        if wanted(seen):
            return seen
        assert time.monotonic() < end, f"{what} did not come within {deadline_s} s; last seen: {seen}"
        time.sleep(LOOK_PAUSE_S)


def background(call):
    """Runs a call on a thread of its own; its outcome is for `result`."""
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(call)
    executor.shutdown(wait=False)
    return future


class Process:
    """A daemon whose output goes to a file. `address` is what it printed after `mark`."""

    def __init__(self, command, log, mark):
        self.log = log
        with log.open("wb") as file:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        found = until(lambda: self.look(mark), bool, f"{mark!r} in the output of {command[0]}")
        self.address = found.group(1)

    def look(self, mark):
        """Looks for the mark in the log; a daemon that has ended will not write it any more."""
        has_ended = self.child.poll() is not None
        text = self.log.read_text()
        found = re.search(mark, text)
        assert found or not has_ended, f"ended with {self.child.returncode} instead of serving:\n{text}"
        return found

    def end(self, how=signal.SIGKILL):
        """Sends the signal and waits for the end."""
        if self.child.poll() is None:
            self.child.send_signal(how)
        return self.child.wait(DEADLINE_S)


class Stub:
    """The running stub, or (with `real`) a running Ollama of somebody else's."""

    def __init__(self, folder, flags, real=""):
        self.process = None
        self.url = real
        if not real:
            command = [BINARIES / "stub_ollama", "--addr=127.0.0.1:0", f"--exit-after={STUB_LIFE_S}"]
            command += [f"--parent-pid={os.getpid()}", *STUB_MODELS, *flags]
            log = folder / f"stub-{uuid.uuid4().hex}.log"
            self.process = Process(command, log, r"listening on (http://\S+)")
            self.url = self.process.address

    def counts(self):
        """The totals since the start or the last reset."""
        return httpx.get(f"{self.url}/_stub/counts").raise_for_status().json()

    def log(self, path=None):
        """The requests, oldest first; with `path`, only those."""
        entries = httpx.get(f"{self.url}/_stub/log").raise_for_status().json()["log"]
        return [entry for entry in entries if path in (None, entry["path"])]

    def fault(self, action, **members):
        """Arms a fault for the next matching request."""
        httpx.post(f"{self.url}/_stub/faults", json={"action": action, **members}).raise_for_status()

    def end(self):
        """Ends it if it is ours; somebody else's is freed of what foreman keeps loaded for ever."""
        if self.process:
            self.process.end()
        else:
            ollama.Client(host=self.url).generate(model=MODEL, keep_alive=0)


class Place:
    """An Ollama with foreman in front, and a client for each: `direct` and `client`."""

    def __init__(self, folder, stub_flags, foreman_flags, real=""):
        self.folder = folder
        self.stub = Stub(folder, stub_flags, real)
        self.foreman_flags = foreman_flags
        self.foreman = None
        self.direct = ollama.Client(host=self.stub.url)
        try:
            self.start_foreman()
        except BaseException:
            self.stub.end()
            raise

    def start_foreman(self):
        """Starts foreman: on a fresh database and a free port at first, on the same ones again after a kill."""
        addr = self.foreman.address if self.foreman else "127.0.0.1:0"
        command = [BINARIES / "foreman", "serve", f"--addr={addr}", f"--ollama-url={self.stub.url}"]
        command += [f"--db={self.folder / 'foreman.db'}", "--retry-delay=20ms", *self.foreman_flags]
        log = self.folder / f"foreman-{uuid.uuid4().hex}.log"
        self.foreman = Process(command, log, r"foreman serves.*http\.addr=(\S+)")
        self.url = f"http://{self.foreman.address}"
        self.client = ollama.Client(host=self.url)

    def status(self):
        """The status document, over HTTP."""
        return httpx.get(f"{self.url}/status", timeout=DEADLINE_S).raise_for_status().json()

    def command(self, *arguments):
        """Runs `foreman ARGUMENTS` against this daemon."""
        return foreman(*arguments, f"--addr={self.foreman.address}")

    def status_json(self):
        """The status document, through `foreman status --json`."""
        ended = self.command("status", "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def wait_for_depth(self, depth):
        """Waits until that many jobs wait."""
        return until(self.status, lambda status: status["queue"]["depth"] == depth, f"a queue of {depth}")

    def wait_for_count(self, name, count):
        """Waits until foreman has counted that many jobs that ended like this."""
        return until(self.status, lambda status: status["since_start"][name] == count, f"{count} {name}")

    def end(self):
        """Ends both, and shows foreman's log; pytest prints it for a failed test only."""
        self.client.close()
        self.direct.close()
        self.foreman.end()
        self.stub.end()
        print(self.foreman.log.read_text())


def foreman(*arguments):
    """Runs `foreman ARGUMENTS` to its end."""
    command = [BINARIES / "foreman", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Notes what came of a scenario: of its own body, or of what was to come before it."""
    report = yield
    marker = item.get_closest_marker("scenario")
    if marker and not REAL_OLLAMA and (call.when == "call" or report.outcome != "passed"):
        client = item.callspec.params["program"]
        program = item.funcargs.get("program")
        outcome = {"passed": results.PASSED, "skipped": results.LACKS}.get(report.outcome, results.FAILED)
        results.note(client, marker.args[0], program and program.version, outcome)
    return report


@pytest.fixture
def places(tmp_path):
    """Starts an Ollama with foreman in front, with flags of the test's own."""
    started = []

    def start(*stub_flags, foreman_flags=()):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Place(folder, stub_flags, foreman_flags, REAL_OLLAMA))
        return started[-1]

    yield start
    for place in started:
        place.end()


@pytest.fixture
def place(places):
    """An Ollama with foreman in front."""
    return places()


@pytest.fixture
def stub_only():
    """Skips a test that a real Ollama cannot serve."""
    if REAL_OLLAMA:
        pytest.skip("needs a feature of the stub's: its counts, its request log, its pace or its faults")


@pytest.fixture
def embed_model():
    """The embedding model."""
    if not EMBED_MODEL:
        pytest.skip("FOREMAN_TEST_EMBED_MODEL names no embedding model")
    return EMBED_MODEL


@pytest.fixture
def needs(place):
    """Skips unless the chat model can do something."""

    def check(capability, model=MODEL):
        if capability not in (place.direct.show(model).capabilities or []):
            pytest.skip(f"{model} has no capability {capability}")

    return check
