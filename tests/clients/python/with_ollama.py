"""The official Python client, `ollama`."""

from contextlib import closing

import ollama
from pydantic import BaseModel
from speak import TOOL, look_up, run


class Answer(BaseModel):
    """The shape of a structured answer."""

    answer: str


def ask(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat(url, model, text, tokens):
    """An unstreamed chat."""
    answer = ollama.Client(host=url).chat(model=model, messages=ask(text), options={"num_predict": tokens})
    return {"text": answer.message.content}


def stream(url, model, text, tokens):
    """A streamed chat."""
    client = ollama.Client(host=url)
    with closing(client.chat(model=model, messages=ask(text), options={"num_predict": tokens}, stream=True)) as parts:
        for part in parts:
            if part.message.content:
                yield part.message.content


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    client, messages = ollama.Client(host=url), ask(text)
    message = client.chat(model=model, messages=messages, tools=[TOOL]).message
    call = message.tool_calls[0].function
    messages += [message, {"role": "tool", "tool_name": call.name, "content": look_up(**call.arguments)}]
    final = client.chat(model=model, messages=messages, tools=[TOOL]).message
    return {"called": call.name, "arguments": dict(call.arguments), "text": final.content}


def structured(url, model, text):
    """An answer that follows a schema."""
    answer = ollama.Client(host=url).chat(model=model, messages=ask(text), format=Answer.model_json_schema())
    return Answer.model_validate_json(answer.message.content).model_dump()


def embed(url, model, texts):
    """Vectors of some texts."""
    return [list(vector) for vector in ollama.Client(host=url).embed(model=model, input=texts).embeddings]


def models(url):
    """The names of what is installed."""
    return [entry.model for entry in ollama.Client(host=url).list().models]


if __name__ == "__main__":
    run("ollama", chat, stream, tools, structured, embed, models)
