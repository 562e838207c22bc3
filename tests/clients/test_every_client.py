"""Promises to the users of every client library: the same scenarios for each, with its own defaults, through foreman.

Each test's name is what it promises. Wherever Ollama itself can say what is right, the client asks the stub as well, and
must get the same through foreman. What a client cannot express is in clients.py, with the reason.
"""

import math
import re

import httpx
import ollama
import pytest
import results
from clients import ANTHROPIC, CLIENTS, OPENAI
from conftest import background, until
from programs import Program
from tap import Tap

pytestmark = pytest.mark.usefixtures("stub_only")

MODEL = "llama3"
TEXT = "Tell me of the sea."

# Several parts; at the pace below they outlast a look at foreman's status.
TOKENS_FEW = 8
TOKENS = 128
TOKENS_LONG = 100_000
PACE = "--token-ms=5"

# Ollama hears of a client that left within this.
GONE_S = 5.0

# The shortest interval of waiting bytes there is, and how many a client is sent before its answer may begin.
WAITING_MS = 100
WAITING = f"--waiting-interval={WAITING_MS}ms"
WAITING_PARTS = 4

# How waiting bytes look on the wire: each is a chunk of its own.
MARKS = {
    "spaces": rb"\r\n1\r\n \r\n",
    "chunks": rb'"content":""',
    OPENAI: rb"\r\n: ",
    ANTHROPIC: rb"\r\nevent: ping\n",
}


@pytest.fixture(scope="session")
def programs():
    """The programs that run, by client."""
    results.forget()
    running = {}
    yield running
    for program in running.values():
        program.end()


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name.replace(": ", "-"))
def program(request, programs):
    """The program of one client, unless the client lacks what the scenario is about."""
    client = request.param
    scenario = request.node.get_closest_marker("scenario").args[0]
    if scenario in client.lacks:
        pytest.skip(client.lacks[scenario])
    if client not in programs:
        programs[client] = Program(client)
    yield programs[client]
    if programs[client].is_busy:
        programs.pop(client).end()


@pytest.fixture
def place(places):
    """The stub with foreman in front, at a pace at which a look can still see an answer being made."""
    return places(PACE)


class Holder:
    """A job that holds the GPU until it is let go: the stub says a word of it and then no more."""

    def __init__(self, place):
        place.stub.fault("hang_after_chunks", chunks=1, path="/api/chat")
        messages = [{"role": "user", "content": "I hold the GPU."}]
        self.stream = ollama.Client(host=place.url).chat(model=MODEL, messages=messages, stream=True)
        next(self.stream)

    def let_go(self):
        """Ends the job by leaving it."""
        self.stream.close()


def both_ways(program, place, do, **request):
    """Asks straight and through foreman; both must come to the same, which is returned."""
    straight = program.ask(do, url=place.stub.url, **request)
    through = program.ask(do, url=place.url, **request)
    # Some clients name the address in what they raise.
    assert str(through).replace(place.url, "URL") == str(straight).replace(place.stub.url, "URL")
    return through


def answered(program, place, do, **request):
    """Asks both ways for what must be answered."""
    outcome = both_ways(program, place, do, **request)
    assert "answer" in outcome, outcome
    return outcome["answer"]


@pytest.mark.scenario("chat")
def test_a_chat_is_answered(program, place):
    assert answered(program, place, "chat", model=MODEL, text=TEXT, tokens=TOKENS_FEW)["text"]
    assert place.status()["since_start"]["done"] == 1


@pytest.mark.scenario("stream")
def test_a_stream_arrives_in_parts_while_the_model_works(program, place):
    program.send("stream", url=place.url, model=MODEL, text=TEXT, tokens=TOKENS)
    assert program.next()["chunk"]
    running = place.status()["running"]
    answer = program.outcome()["answer"]
    assert [job["state"] for job in running] == ["working"]
    assert answer["chunks"] > 1
    straight = program.ask("chat", url=place.stub.url, model=MODEL, text=TEXT, tokens=TOKENS)
    assert answer["text"] == straight["answer"]["text"]


@pytest.mark.scenario("tools")
def test_a_tool_is_called_and_its_result_goes_back(program, place):
    answer = answered(program, place, "tools", model=MODEL, text="Use the tool.")
    assert answer["called"] == "look_up" and answer["arguments"]["input"]
    assert answer["text"]
    assert place.status()["since_start"]["done"] == 2
    assert "forty fathoms" in place.stub.log()[-1]["body"]


@pytest.mark.scenario("structured")
def test_structured_output_follows_its_schema(program, place):
    answer = answered(program, place, "structured", model=MODEL, text="How deep is the sea?")
    assert isinstance(answer["answer"], str) and answer["answer"]


@pytest.mark.scenario("embed")
def test_embeddings_are_answered(program, place):
    vectors = answered(program, place, "embed", model="embed", texts=["one", "two"])
    assert len(vectors) == 2 and vectors[0] != vectors[1]
    assert all(math.isfinite(number) for vector in vectors for number in vector)


@pytest.mark.scenario("models")
def test_the_models_are_listed(program, place):
    names = answered(program, place, "models")
    assert any(MODEL in name for name in names)


@pytest.mark.scenario("leave")
def test_leaving_in_mid_stream_cancels_the_job(program, place):
    left = program.ask("stream", url=place.url, model=MODEL, text=TEXT, tokens=TOKENS_LONG, leave_after=2)
    assert left == {"left": True}
    gone = lambda: [entry for entry in place.stub.log() if entry.get("end") == "ClientGone"]
    until(gone, lambda entries: len(entries) == 1, "the end of the abandoned chat", GONE_S)
    place.wait_for_count("cancelled", 1)


@pytest.mark.scenario("unknown")
def test_an_unknown_model_raises_with_ollamas_text(program, place):
    outcome = both_ways(program, place, "chat", model="no-such-model", text=TEXT, tokens=TOKENS_FEW)
    assert outcome["error"]["kind"] == program.client.not_found
    assert "no-such-model" in outcome["error"]["text"] and "not found" in outcome["error"]["text"]


def few(url):
    """The request whose answer is compared: a few words of the sea."""
    return {"url": url, "model": MODEL, "text": TEXT, "tokens": TOKENS_FEW}


def is_whole(program, place, do, outcome):
    """Says whether an outcome is the answer that the client gets straight from Ollama."""
    straight = program.ask(do, **few(place.stub.url))
    return "answer" in outcome and outcome == straight


def waits_and_is_told_so(program, place, do, mark):
    """Has a call wait for a held GPU until its client was sent waiting bytes often enough, and lets it have its turn."""
    holder, tap = Holder(place), Tap(place.foreman.address)
    program.send(do, **few(tap.url))
    marks = lambda: program.still_waits() and len(re.findall(mark, tap.sent))
    until(marks, lambda seen: seen >= WAITING_PARTS, "waiting bytes")
    tap.close()
    return holder


@pytest.mark.scenario("wait")
@pytest.mark.parametrize("kind", ["spaces", "chunks"])
def test_a_stream_that_waits_long_gets_its_whole_answer(program, places, kind):
    place = places(PACE, foreman_flags=[WAITING, f"--waiting-stream={kind}"])
    waits_and_is_told_so(program, place, "stream", MARKS.get(program.client.path, MARKS[kind])).let_go()
    assert is_whole(program, place, "stream", program.outcome())


@pytest.mark.scenario("wait")
def test_a_failure_behind_waiting_bytes_raises(program, places):
    place = places(PACE, foreman_flags=[WAITING])
    holder = waits_and_is_told_so(program, place, "stream", MARKS.get(program.client.path, MARKS["spaces"]))
    place.stub.fault("answer", status=400, text="the model had a bad day", path=program.client.path)
    holder.let_go()
    outcome = program.outcome()
    assert "error" in outcome, outcome


@pytest.mark.scenario("wait_whole")
def test_an_unstreamed_answer_behind_waiting_spaces_is_whole(program, places):
    place = places(PACE, foreman_flags=[WAITING, "--waiting-unstreamed=spaces"])
    waits_and_is_told_so(program, place, "chat", MARKS["spaces"]).let_go()
    assert is_whole(program, place, "chat", program.outcome())


@pytest.mark.scenario("wait_whole")
def test_an_unstreamed_answer_is_waited_for_in_silence(program, places):
    place = places(PACE, foreman_flags=[WAITING])
    holder = Holder(place)
    program.send("chat", **few(place.url))
    ages = lambda: program.still_waits() and [job["age_ms"] for job in place.status()["queue"]["jobs"]]
    until(ages, lambda seen: seen and seen[0] >= WAITING_PARTS * WAITING_MS, "a long wait")
    holder.let_go()
    assert is_whole(program, place, "chat", program.outcome())


@pytest.mark.scenario("full")
def test_a_full_queue_is_told_or_waited_out(program, places):
    # Who tries again by itself does so after the time that foreman names; the others' users see its sentence.
    place = places(PACE, foreman_flags=["--max-queue=1"])
    holder, tap = Holder(place), Tap(place.foreman.address)
    ahead = background(lambda: ollama.Client(host=place.url).generate(model=MODEL, prompt="I was here before."))
    place.wait_for_depth(1)
    program.send("chat", **few(tap.url))
    until(lambda: b" 503 " in tap.sent, bool, "the refusal")
    assert b"\nretry-after: " in tap.sent.lower()
    holder.let_go()
    assert ahead.result().done
    outcome = program.outcome()
    if program.client.tries_again:
        assert is_whole(program, place, "chat", outcome)
    else:
        assert "the queue is full" in outcome["error"]["text"]


@pytest.mark.scenario("restart")
def test_a_call_repeated_after_a_kill_gets_the_one_answer(program, place):
    # Foreman is killed while the call waits and comes back on its port and database. What the client does not send again
    # by itself its user does.
    holder = Holder(place)
    program.send("chat", **few(place.url))
    place.wait_for_depth(1)
    place.foreman.end()
    with pytest.raises(httpx.TransportError):
        next(holder.stream)
    place.start_foreman()
    outcome = program.outcome()
    if not program.client.tries_again:
        assert "error" in outcome, outcome
    if "error" in outcome:
        outcome = program.ask("chat", **few(place.url))
    assert is_whole(program, place, "chat", outcome)
    # The holder's job is made again as well; of the waiting one there is one job and one execution.
    stored = until(place.status, lambda status: status["stored"].get("done") == 2, "the end of both jobs")["stored"]
    assert sum(stored.values()) == 2, stored
    made = [entry for entry in place.stub.log() if TEXT in entry["body"]]
    assert len(made) == 2, [entry["body"] for entry in made]


@pytest.mark.scenario("cut")
@pytest.mark.parametrize("action", ["error_after_chunks", "end_without_done", "kill_runner"])
def test_an_answer_that_is_cut_short_raises(program, place, action):
    place.stub.fault(action, chunks=3, path=program.client.path)
    outcome = program.ask("stream", url=place.url, model=MODEL, text=TEXT, tokens=TOKENS)
    assert "error" in outcome, outcome
    place.wait_for_count("failed", 1)
