"""The official Anthropic client for Python, `anthropic`, on Ollama's `/v1/messages`."""

import anthropic
from speak import LOOK_UP, look_up, run

TOOL = {"name": "look_up", "description": "Looks a word up.", "input_schema": LOOK_UP}

# This API wants a limit for every answer; the scenarios that set none need no more.
TOKENS_MAX = 64


def client(url):
    """The client as its users make it: it insists on a key, which Ollama ignores."""
    return anthropic.Anthropic(base_url=url, api_key="unused")


def ask(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def text_of(message):
    """The text of an answer."""
    return "".join(block.text for block in message.content if block.type == "text")


def chat(url, model, text, tokens):
    """An unstreamed chat."""
    return {"text": text_of(client(url).messages.create(model=model, messages=ask(text), max_tokens=tokens))}


def stream(url, model, text, tokens):
    """A streamed chat."""
    with client(url).messages.stream(model=model, messages=ask(text), max_tokens=tokens) as parts:
        yield from parts.text_stream


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    messages, wants = ask(text), {"model": model, "max_tokens": TOKENS_MAX, "tools": [TOOL]}
    message = client(url).messages.create(messages=messages, **wants)
    call = next(block for block in message.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": look_up(**call.input)}
    messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    final = client(url).messages.create(messages=messages, **wants)
    return {"called": call.name, "arguments": call.input, "text": text_of(final)}


def models(url):
    """The names of what is installed."""
    return [entry.id for entry in client(url).models.list()]


if __name__ == "__main__":
    run("anthropic", chat, stream, tools, models)
