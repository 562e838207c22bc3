"""The part of every Python client program that is the same: requests in on stdin, what came of them out on stdout.

One JSON object a line, one request at a time. The first line out is `{"ready": VERSION}`. A request names what to `do`
(a function of the client's module) and holds its arguments; out come `{"chunk": TEXT}` for each part of a stream, then
one of `{"answer": …}`, `{"left": true}` and `{"error": {"kind", "text"}}`. `with_*.py` call `run`; nothing here or there
decides whether an outcome is right: that is the suite's.
"""

import json
import sys
from importlib.metadata import version

LOOK_UP = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}

# What the client is to call, as most of them want it.
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks a word up.", "parameters": LOOK_UP},
}

# What a client's program does for its model after the tool was called.
TOOL_ANSWER = "forty fathoms"


def look_up(input: str) -> str:
    """Looks a word up."""
    return TOOL_ANSWER


# Some packages print advice where nobody asked for it: what they take for stdout is stderr.
OUT, sys.stdout = sys.stdout, sys.stderr


def say(**line):
    """Writes one line."""
    print(json.dumps(line), file=OUT, flush=True)


def follow(stream, leave_after):
    """Passes a stream's texts on; leaves it after so many of them. Returns how the stream came out."""
    texts = []
    for text in stream:
        texts.append(text)
        say(chunk=text)
        if len(texts) == leave_after:
            stream.close()
            return {"left": True}
    return {"answer": {"text": "".join(texts), "chunks": len(texts)}}


def carry_out(functions, request):
    """Carries one request out."""
    do, leave_after = request.pop("do"), request.pop("leave_after", None)
    try:
        outcome = functions[do](**request)
        return follow(outcome, leave_after) if do == "stream" else {"answer": outcome}
    # Whatever the client raises is what its users see.
    except Exception as error:
        return {"error": {"kind": type(error).__name__, "text": str(error)}}


def run(package, *functions):
    """Serves requests until stdin ends."""
    by_name = {function.__name__: function for function in functions}
    say(ready=version(package))
    for line in sys.stdin:
        say(**carry_out(by_name, json.loads(line)))
