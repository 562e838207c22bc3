"""The official OpenAI client for Python, `openai`."""

import json

import openai
from pydantic import BaseModel
from speak import TOOL, look_up, run


class Answer(BaseModel):
    """The shape of a structured answer."""

    answer: str


def client(url):
    """The client as its users make it: it insists on a key, which Ollama ignores."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused")


def ask(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat(url, model, text, tokens):
    """An unstreamed chat."""
    answer = client(url).chat.completions.create(model=model, messages=ask(text), max_tokens=tokens)
    return {"text": answer.choices[0].message.content}


def stream(url, model, text, tokens):
    """A streamed chat."""
    completions = client(url).chat.completions
    with completions.create(model=model, messages=ask(text), max_tokens=tokens, stream=True) as parts:
        for part in parts:
            if part.choices and part.choices[0].delta.content:
                yield part.choices[0].delta.content


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    completions, messages = client(url).chat.completions, ask(text)
    message = completions.create(model=model, messages=messages, tools=[TOOL]).choices[0].message
    call = message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": look_up(**arguments)}]
    final = completions.create(model=model, messages=messages, tools=[TOOL]).choices[0].message
    return {"called": call.function.name, "arguments": arguments, "text": final.content}


def structured(url, model, text):
    """An answer that follows a schema."""
    answer = client(url).chat.completions.parse(model=model, messages=ask(text), response_format=Answer)
    return answer.choices[0].message.parsed.model_dump()


def embed(url, model, texts):
    """Vectors of some texts."""
    return [entry.embedding for entry in client(url).embeddings.create(model=model, input=texts).data]


def models(url):
    """The names of what is installed."""
    return [entry.id for entry in client(url).models.list()]


if __name__ == "__main__":
    run("openai", chat, stream, tools, structured, embed, models)
