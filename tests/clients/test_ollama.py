"""Promises to users of the official `ollama` Python package: behind foreman it works as it does straight at Ollama.

Each test's name is what it promises. Wherever Ollama itself can say what is right, the same call is made straight at it
(`place.direct`) and through foreman (`place.client`), and the two must agree; nothing of Ollama's is written down twice.
"""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import pytest
from conftest import EMBED_MODEL, MODEL, REAL_OLLAMA, background, foreman, until

# Short for a real model on a CPU, long enough to be several chunks.
TOKENS = 12

# A stub's answer that outlasts what a test does meanwhile.
TOKENS_LONG = 100_000

# Ollama hears of a client that left within this.
GONE_S = 1.0

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    },
}

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def ask(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def options(tokens=TOKENS):
    """Options that make an answer short and as repeatable as a model can be."""
    return {"num_predict": tokens, "seed": 7, "temperature": 0}


def chat(client, text="Tell me of the sea.", model=MODEL, tokens=TOKENS, **more):
    """An unstreamed chat."""
    return client.chat(model=model, messages=ask(text), options=options(tokens), **more)


def chat_stream(client, text="Tell me of the sea.", model=MODEL, tokens=TOKENS, **more):
    """A streamed chat."""
    return client.chat(model=model, messages=ask(text), options=options(tokens), stream=True, **more)


def text_of(chunks):
    """The text of a streamed chat."""
    return "".join(chunk.message.content or "" for chunk in chunks)


def outcome(call):
    """What a call came to: its answer, or the error as the client shows it."""
    try:
        answer = call()
    except ollama.ResponseError as error:
        return ("error", error.status_code, error.error)
    if hasattr(answer, "model_dump"):
        return ("answer", answer.model_dump())
    return ("answers", [part.model_dump() for part in answer])


def refused_alike(place, call):
    """Makes a call that Ollama refuses, both ways; returns the status and text that both gave."""
    direct, through = outcome(lambda: call(place.direct)), outcome(lambda: call(place.client))
    assert through == direct
    assert direct[0] == "error", direct
    return direct[1:]


def read_into(chunks, stream):
    """Reads a stream that will raise, and keeps what came before."""
    for chunk in stream:
        chunks.append(chunk)


def wait_for_client_gone(place):
    """Waits, no longer than Ollama may take to hear of it, until one client has left a chat."""
    gone = lambda: [entry for entry in place.stub.log("/api/chat") if entry.get("end") == "ClientGone"]
    return until(gone, lambda entries: len(entries) == 1, "the end of the abandoned chat", GONE_S)


# Chat and generate.


def test_a_chat_is_answered(place):
    answer = chat(place.client)
    assert answer.done and answer.message.role == "assistant"
    assert answer.message.content
    assert 0 < answer.eval_count <= TOKENS


def test_a_streamed_chat_arrives_while_the_model_still_works(places):
    # Foreman says the job still runs when the first chunk is here: nothing was collected first.
    place = places("--token-ms=5")
    stream = chat_stream(place.client, tokens=256)
    first = next(stream)
    running = place.status()["running"]
    rest = list(stream)
    assert [job["state"] for job in running] == ["working"]
    assert not first.done and rest[-1].done
    assert len(rest) > 1
    assert text_of([first, *rest])


def test_the_async_client_streams(place):
    async def run():
        client = ollama.AsyncClient(host=place.url)
        stream = await client.chat(model=MODEL, messages=ask("Hello."), options=options(), stream=True)
        return [chunk async for chunk in stream]

    chunks = asyncio.run(run())
    assert chunks[-1].done
    assert text_of(chunks)


def test_many_async_clients_are_all_answered(place):
    async def run():
        client = ollama.AsyncClient(host=place.url)
        calls = [client.chat(model=MODEL, messages=ask(f"Say {n}."), options=options()) for n in range(20)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    assert len(answers) == 20 and all(answer.done for answer in answers)


def test_generate_is_answered(place):
    answer = place.client.generate(model=MODEL, prompt="The sea", options=options())
    assert answer.done and answer.response and answer.context


def test_generate_streams(place):
    chunks = list(place.client.generate(model=MODEL, prompt="The sea", options=options(), stream=True))
    assert len(chunks) > 1 and chunks[-1].done
    assert "".join(chunk.response for chunk in chunks)


def test_answers_equal_those_straight_from_ollama(stub_only, places):
    # The stub's clock stands still, so that equal requests get equal bytes, times included.
    place = places("--fixed-time")
    calls = [
        lambda client: chat(client),
        lambda client: chat_stream(client),
        lambda client: chat(client, model="qwen3", think=True),
        lambda client: chat(client, text="Use the tool.", tools=[TOOL]),
        lambda client: chat(client, format=SCHEMA),
        lambda client: client.generate(model=MODEL, prompt="The sea", options=options()),
        lambda client: client.generate(model=MODEL, prompt="The sea", options=options(), stream=True),
        lambda client: client.embed(model=EMBED_MODEL, input=["one", "two"]),
        lambda client: client.embeddings(model=EMBED_MODEL, prompt="one"),
    ]
    for call in calls:
        direct, through = outcome(lambda: call(place.direct)), outcome(lambda: call(place.client))
        assert direct[0] != "error", direct
        assert through == direct


def test_a_model_calls_a_tool(place, needs):
    needs("tools")
    answer = chat(place.client, text="Use the tool to look up the word sea.", tokens=128, tools=[TOOL])
    if REAL_OLLAMA and not answer.message.tool_calls:
        pytest.skip(f"{MODEL} did not care to call the tool")
    call = answer.message.tool_calls[0].function
    assert call.name == "look_up" and "input" in call.arguments


def test_a_tool_call_streams(stub_only, place):
    chunks = list(chat_stream(place.client, text="Use the tool.", tools=[TOOL]))
    calls = [call for chunk in chunks for call in chunk.message.tool_calls or []]
    assert [call.function.name for call in calls] == ["look_up"]


@pytest.mark.parametrize("wanted", ["json", SCHEMA], ids=["json", "schema"])
def test_structured_output_is_json(place, wanted):
    answer = chat(place.client, text="Answer in JSON: how deep is the sea?", tokens=200, format=wanted)
    if REAL_OLLAMA and answer.done_reason == "length":
        pytest.skip(f"{MODEL} did not come to an end")
    assert isinstance(json.loads(answer.message.content), dict)


def test_thinking_comes_apart_from_the_answer(place, needs):
    model = MODEL if REAL_OLLAMA else "qwen3"
    needs("thinking", model)
    chunks = list(chat_stream(place.client, model=model, think=True))
    assert any(chunk.message.thinking for chunk in chunks)
    assert chunks[-1].done


# Embeddings and the library.


def test_embeddings_are_answered(place, embed_model):
    batch = place.client.embed(model=embed_model, input=["one", "two"])
    assert len(batch.embeddings) == 2
    assert batch.embeddings == place.direct.embed(model=embed_model, input=["one", "two"]).embeddings
    single = place.client.embeddings(model=embed_model, prompt="one")
    assert single.embedding == place.direct.embeddings(model=embed_model, prompt="one").embedding


def test_an_embedding_does_not_wait_for_the_queue(stub_only, places):
    # A slow chat runs and another one waits; the GPU has room for the embedder beside it.
    place = places("--max-loaded=2", "--token-ms=5")
    place.client.embed(model=EMBED_MODEL, input="warm")
    running = chat_stream(place.client, tokens=TOKENS_LONG)
    next(running)
    waiting = background(lambda: chat(place.client))
    place.wait_for_depth(1)
    assert len(place.client.embed(model=EMBED_MODEL, input="one").embeddings) == 1
    assert place.status()["queue"]["depth"] == 1
    running.close()
    assert waiting.result().done


def test_list_and_show_say_what_ollama_says(place):
    assert place.client.list() == place.direct.list()
    assert MODEL.split(":")[0] in {entry.model.split(":")[0] for entry in place.client.list().models}
    assert place.client.show(MODEL) == place.direct.show(MODEL)


def test_ps_shows_the_model_that_foreman_loaded(place):
    chat(place.client)
    loaded = place.client.ps().models
    assert MODEL.split(":")[0] in {entry.model.split(":")[0] for entry in loaded}
    assert place.client.ps() == place.direct.ps()


def test_a_pulled_model_can_be_used_at_once(stub_only, place):
    assert refused_alike(place, lambda client: chat(client, model="gemma3"))[0] == 404
    progress = list(place.client.pull("gemma3", stream=True))
    assert progress[0].status == "pulling manifest" and progress[-1].status == "success"
    assert any(step.completed for step in progress)
    assert chat(place.client, model="gemma3").done
    assert outcome(lambda: place.client.pull("gemma3")) == outcome(lambda: place.direct.pull("gemma3"))


def test_a_pull_that_fails_says_why(stub_only, place):
    # Ollama tells it inside a stream that began with 200.
    status, text = refused_alike(place, lambda client: list(client.pull("nobody/nothing", stream=True)))
    assert status == -1 and "file does not exist" in text


def test_a_copy_can_be_used_and_deleted(place):
    copy = "foreman-test-copy"
    assert place.client.copy(MODEL, copy).status == "success"
    try:
        assert chat(place.client, model=copy).done
    finally:
        assert place.client.delete(copy).status == "success"
    assert refused_alike(place, lambda client: chat(client, model=copy))[0] == 404


def test_a_created_model_can_be_used(place):
    name = "foreman-test-created"
    steps = list(place.client.create(name, from_=MODEL, parameters={"num_ctx": 2048}, stream=True))
    try:
        assert steps[-1].status == "success"
        assert "2048" in place.client.show(name).parameters
        assert chat(place.client, model=name).done
    finally:
        place.client.delete(name)


def test_a_blob_reaches_ollama_whole(stub_only, place, tmp_path):
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"weights " * 1_000_000)
    digest = place.client.create_blob(weights)
    assert place.stub.counts()["blob_bytes"] == weights.stat().st_size
    assert place.client.create("made", files={"weights.gguf": digest}).status == "success"


# Leaving.


def test_leaving_in_mid_stream_ends_the_job_and_starts_the_next(stub_only, places):
    place = places("--token-ms=5")
    stream = chat_stream(place.client, tokens=TOKENS_LONG)
    next(stream)
    waiting = background(lambda: chat(place.client, text="And now me."))
    place.wait_for_depth(1)
    stream.close()
    wait_for_client_gone(place)
    assert waiting.result().done
    place.wait_for_count("cancelled", 1)


def test_breaking_out_of_the_loop_ends_the_job(stub_only, places):
    place = places("--token-ms=5")
    for chunk in chat_stream(place.client, tokens=TOKENS_LONG):
        assert not chunk.done
        break
    # CPython closes the abandoned generator at once, and with it the connection.
    wait_for_client_gone(place)
    assert chat(place.client).done


def test_a_cancelled_task_of_the_async_client_ends_the_job(stub_only, places):
    place = places("--token-ms=5")

    async def run():
        client = ollama.AsyncClient(host=place.url)
        begun = asyncio.Event()

        async def read():
            stream = await client.chat(
                model=MODEL, messages=ask("Hello."), options=options(TOKENS_LONG), stream=True
            )
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    wait_for_client_gone(place)
    assert chat(place.client).done


def test_ollama_never_hears_of_a_client_that_leaves_the_queue(stub_only, places):
    place = places("--token-ms=5")
    running = chat_stream(place.client, tokens=TOKENS_LONG)
    next(running)
    impatient = ollama.Client(host=place.url, timeout=0.3)
    with pytest.raises(httpx.ReadTimeout):
        chat(impatient, text="I was never here.")
    place.wait_for_depth(0)
    running.close()
    assert chat(place.client).done
    assert all("never here" not in entry["body"] for entry in place.stub.log())


# Errors.


def test_an_unknown_model_is_refused_in_ollamas_words(place):
    unknown = "foreman-test-unknown"
    for call in [
        lambda client: chat(client, model=unknown),
        lambda client: list(chat_stream(client, model=unknown)),
        lambda client: client.generate(model=unknown, prompt="Hello."),
        lambda client: client.embed(model=unknown, input="one"),
        lambda client: client.show(unknown),
        lambda client: client.delete(unknown),
        lambda client: client.copy(unknown, "copy"),
    ]:
        status, text = refused_alike(place, call)
        assert status == 404
        assert unknown in text and "not found" in text


def test_a_bad_request_is_refused_in_ollamas_words(place):
    assert refused_alike(place, lambda client: chat(client, keep_alive="soon"))[0] == 400
    assert refused_alike(place, lambda client: list(chat_stream(client, keep_alive="soon")))[0] == 400
    # A bad option is Ollama's fault by its status, and is not tried again for that.
    bad = {"num_ctx": "many"}
    assert refused_alike(place, lambda client: client.generate(model=MODEL, prompt="x", options=bad))[0] == 500


def test_a_missing_capability_is_refused_in_ollamas_words(stub_only, place):
    for call, capability in [
        (lambda client: chat(client, model=EMBED_MODEL), "chat"),
        (lambda client: chat(client, model="plain", tools=[TOOL]), "tools"),
        (lambda client: chat(client, model="plain", think=True), "thinking"),
    ]:
        status, text = refused_alike(place, call)
        assert status == 400 and capability in text
    assert refused_alike(place, lambda client: client.embed(model="plain", input="one"))[0] == 501


def test_an_error_inside_a_stream_raises_with_ollamas_text(stub_only, place):
    text = "the model had a bad day"
    place.stub.fault("error_after_chunks", chunks=3, text=text, path="/api/chat")
    chunks = []
    with pytest.raises(ollama.ResponseError) as raised:
        read_into(chunks, chat_stream(place.client))
    assert raised.value.error == text
    assert len(chunks) == 3
    assert chat(place.client).done


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "end_without_done", "chunks": 3},
        {"action": "kill_runner", "chunks": 3},
        # In the middle of a record: the client must not stumble over a half line before it comes to foreman's error.
        {"action": "cut_after_bytes", "bytes": 400},
        {"action": "cut_after_bytes", "bytes": 400, "how": "reset"},
    ],
    ids=["no-done", "runner-died", "closed", "reset"],
)
def test_an_answer_that_was_cut_raises(stub_only, place, fault):
    # Straight at Ollama, `no-done` passes for a whole answer: this client does not miss the last record.
    place.stub.fault(path="/api/chat", **fault)
    chunks = []
    with pytest.raises(ollama.ResponseError):
        read_into(chunks, chat_stream(place.client))
    assert chunks and not chunks[-1].done
    # The client leaves on the error line; the job has failed all the same.
    place.wait_for_count("failed", 1)
    assert chat(place.client).done


def test_an_unstreamed_answer_that_was_cut_is_made_again(stub_only, place):
    place.stub.fault("cut_after_bytes", bytes=50, path="/api/chat")
    assert chat(place.client).done
    assert len(place.stub.log("/api/chat")) == 2


def test_a_busy_ollama_is_asked_again(stub_only, place):
    busy = "server busy, please try again.  maximum pending requests exceeded"
    place.stub.fault("answer", status=503, text=busy, path="/api/chat")
    assert outcome(lambda: chat(place.direct)) == ("error", 503, busy)
    place.stub.fault("answer", status=503, text=busy, path="/api/chat", times=2)
    before = len(place.stub.log("/api/chat"))
    assert chat(place.client).done
    statuses = [entry["status"] for entry in place.stub.log("/api/chat")[before:]]
    assert statuses == [503, 503, 200]


def test_a_restart_of_ollama_goes_unnoticed(stub_only, place):
    def is_away():
        try:
            place.direct.list()
        except (ConnectionError, httpx.TransportError):
            return True
        return False

    chat(place.client)
    httpx.post(f"{place.stub.url}/_stub/down", json={"ms": 1000}).raise_for_status()
    until(is_away, bool, "Ollama's end")
    assert chat(place.client).done
    assert not is_away()


def test_a_token_is_asked_for_and_kept_from_ollama(places):
    place = places(foreman_flags=["--token=open-sesame"])
    with pytest.raises(ollama.ResponseError) as raised:
        chat(place.client)
    assert raised.value.status_code == 401
    known = ollama.Client(host=place.url, headers={"Authorization": "Bearer open-sesame"})
    assert chat(known).done
    if not REAL_OLLAMA:
        assert all("open-sesame" not in json.dumps(entry) for entry in place.stub.log())
    assert place.command("status").returncode == 77
    assert place.command("status", "--token=open-sesame").returncode == 0


# The reason for foreman.


def two_models_by_turns(place, client, arrived):
    """Many clients ask two models by turns while the first model still loads; returns the jobs and what they cost."""
    jobs = 16
    place.stub.fault("slow_load", ms=1_500)
    before, arrived_before = place.stub.counts(), arrived()
    with ThreadPoolExecutor(max_workers=jobs) as executor:
        futures = []
        for number in range(jobs):
            model = ["llama3", "qwen3"][number % 2]
            futures.append(executor.submit(chat, client, text=f"job {number}", model=model))
            # One after the other, so that the order is the same both ways.
            wanted = arrived_before + len(futures)
            until(arrived, lambda seen: seen >= wanted, f"the arrival of job {number}")
    assert all(future.result().done for future in futures)
    after = place.stub.counts()
    return jobs, {name: after[name] - before[name] for name in ("loads", "evictions")}


def test_two_models_by_turns_cost_fewer_loads_than_jobs(stub_only, place):
    jobs, direct = two_models_by_turns(place, place.direct, lambda: place.stub.counts()["requests"])
    _, through = two_models_by_turns(place, place.client, lambda: sum(place.status()["stored"].values()))
    print(f"{jobs} jobs: straight {direct}, through foreman {through}")
    assert through["loads"] < direct["loads"] <= jobs
    # The first meeting of two models is a trial whether they fit: Ollama may push one out once.
    assert through["loads"] == 2 and through["evictions"] <= 1


def test_jobs_survive_a_kill_of_foreman(stub_only, places):
    # One job runs and one waits when foreman is killed. Their clients see an error; both jobs are done after the restart.
    place = places("--token-ms=5")
    running = chat_stream(place.client, text="running", tokens=200)
    next(running)
    waiting = background(lambda: chat(place.client, text="waiting"))
    place.wait_for_depth(1)
    place.foreman.end()
    with pytest.raises(httpx.TransportError):
        list(running)
    assert isinstance(waiting.exception(), httpx.TransportError)

    place.start_foreman()
    done = until(place.status_json, lambda status: status["stored"].get("done") == 2, "the end of both jobs")
    assert done["queue"]["depth"] == 0 and done["running"] == []
    answered = [entry["body"] for entry in place.stub.log("/api/chat") if entry.get("end") == "Complete"]
    assert ["running" in answered[0], "waiting" in answered[1]] == [True, True]


# The command line.


def test_status_tells_what_waits_and_what_is_loaded(place):
    stream = chat_stream(place.client, tokens=512)
    next(stream)
    document = place.status_json()
    page = place.command("status")
    stream.close()
    assert document["service"] == "foreman" and document["upstream"]["state"] == "up"
    assert [job["dialect"] for job in document["running"]] == ["chat"]
    assert page.returncode == 0 and page.stderr == ""
    assert page.stdout.startswith("foreman ") and document["running"][0]["id"] in page.stdout
    assert all(len(line) <= 80 for line in page.stdout.splitlines())


def test_status_ends_with_69_where_nothing_listens():
    with socket.socket() as taken:
        # Bound and not listening: nobody else gets the port, and nobody answers on it.
        taken.bind(("127.0.0.1", 0))
        addr = f"127.0.0.1:{taken.getsockname()[1]}"
        for arguments in [["status"], ["status", "--json"]]:
            ended = foreman(*arguments, f"--addr={addr}")
            assert ended.returncode == 69
            assert ended.stdout == "" and addr in ended.stderr
