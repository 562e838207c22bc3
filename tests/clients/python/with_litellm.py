"""LiteLLM, `litellm`, with its Ollama provider."""

import json
import os

# It asks the network for the prices of models when it is imported; it has a copy of them.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel
from speak import TOOL, look_up, run


class Answer(BaseModel):
    """The shape of a structured answer."""

    answer: str


def complete(url, model, messages, **more):
    """A completion."""
    return litellm.completion(model=f"ollama_chat/{model}", api_base=url, messages=messages, **more)


def ask(text):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat(url, model, text, tokens):
    """An unstreamed chat."""
    return {"text": complete(url, model, ask(text), max_tokens=tokens).choices[0].message.content}


def stream(url, model, text, tokens):
    """A streamed chat."""
    parts = complete(url, model, ask(text), max_tokens=tokens, stream=True)
    for part in parts:
        if part.choices[0].delta.content:
            yield part.choices[0].delta.content


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    messages = ask(text)
    message = complete(url, model, messages, tools=[TOOL]).choices[0].message
    call = message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": look_up(**arguments)}
    messages += [message.model_dump(), result]
    final = complete(url, model, messages, tools=[TOOL]).choices[0].message
    return {"called": call.function.name, "arguments": arguments, "text": final.content}


def structured(url, model, text):
    """An answer that follows a schema."""
    answer = complete(url, model, ask(text), response_format=Answer)
    return Answer.model_validate_json(answer.choices[0].message.content).model_dump()


def embed(url, model, texts):
    """Vectors of some texts."""
    answer = litellm.embedding(model=f"ollama/{model}", api_base=url, input=texts)
    return [entry["embedding"] for entry in answer.data]


def models(url):
    """The names of what is installed."""
    return litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="ollama", api_base=url)


if __name__ == "__main__":
    run("litellm", chat, stream, tools, structured, embed, models)
