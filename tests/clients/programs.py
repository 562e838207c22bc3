"""Runs the client programs: one process a client for the whole suite, since importing some of them takes seconds.

Called by the fixtures. The protocol is told in python/speak.py. A program that is still busy at the end of a test is
ended, and the next test starts a new one.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from conftest import DEADLINE_S

SUITE = Path(__file__).parent.resolve()

# Node finds packages beside the file that asks for them: its programs run from where theirs were installed.
NODE_PLACE = Path(os.environ.get("FOREMAN_TEST_NODE_PLACE", "target/clients-node")).resolve()
NODE = os.environ.get("FOREMAN_TEST_NODE", "node")
RUST_BINARIES = Path(os.environ.get("FOREMAN_TEST_RUST_BINARIES", "target/clients-rust/debug")).resolve()

# How long a program may take to import its client.
START_S = 120


def command(client):
    """How a client's program is started, and where."""
    if client.registry == "npm":
        return [NODE, f"{client.program}.mjs"], NODE_PLACE
    if client.registry == "crates.io":
        return [RUST_BINARIES / client.program], SUITE
    return [sys.executable, SUITE / "python" / f"{client.program}.py"], SUITE


class Program:
    """A running client program."""

    def __init__(self, client):
        self.client = client
        argv, place = command(client)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.child = subprocess.Popen(argv, cwd=place, text=True, bufsize=1, **pipes)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.is_busy = True
        self.version = self.next(START_S)["ready"]
        self.is_busy = False

    def read(self):
        """Takes what the program writes, so that a test can wait for it with a deadline."""
        for line in self.child.stdout:
            self.lines.put(json.loads(line))
        self.lines.put({"ended": True})

    def next(self, deadline_s=DEADLINE_S):
        """The next line."""
        line = self.lines.get(timeout=deadline_s)
        assert "ended" not in line, f"the program ended with {self.child.wait(DEADLINE_S)}"
        return line

    def send(self, do, **request):
        """Hands a request in."""
        self.is_busy = True
        self.child.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.child.stdin.flush()

    def outcome(self):
        """Waits for what came of the request; the parts of a stream come before."""
        while "chunk" in (line := self.next()):
            pass
        self.is_busy = False
        return line

    def still_waits(self):
        """Returns true; fails with what came of the request where it should still be under way."""
        assert self.lines.empty(), self.next()
        return True

    def ask(self, do, **request):
        """Hands a request in and waits for what came of it."""
        self.send(do, **request)
        return self.outcome()

    def end(self):
        """Ends the program, busy or not."""
        self.child.kill()
        self.child.wait(DEADLINE_S)
