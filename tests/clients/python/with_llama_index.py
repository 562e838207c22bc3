"""LlamaIndex's Ollama packages, `llama-index-llms-ollama` and `llama-index-embeddings-ollama`."""

from contextlib import closing

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama
from pydantic import BaseModel
from speak import look_up, run


class Answer(BaseModel):
    """The shape of a structured answer."""

    answer: str


def llm(url, model, tokens=None):
    """The model with the package's own time limit."""
    return Ollama(model=model, base_url=url, additional_kwargs={"num_predict": tokens} if tokens else {})


def ask(text):
    """A conversation of one message."""
    return [ChatMessage(role="user", content=text)]


def chat(url, model, text, tokens):
    """An unstreamed chat."""
    return {"text": llm(url, model, tokens).chat(ask(text)).message.content}


def stream(url, model, text, tokens):
    """A streamed chat."""
    with closing(llm(url, model, tokens).stream_chat(ask(text))) as parts:
        for part in parts:
            if part.delta:
                yield part.delta


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    asking, tool, messages = llm(url, model), FunctionTool.from_defaults(fn=look_up), ask(text)
    answer = asking.chat_with_tools([tool], chat_history=messages)
    call = asking.get_tool_calls_from_response(answer)[0]
    result = tool(**call.tool_kwargs).content
    messages += [answer.message, ChatMessage(role="tool", content=result)]
    final = asking.chat_with_tools([tool], chat_history=messages)
    return {"called": call.tool_name, "arguments": call.tool_kwargs, "text": final.message.content}


def structured(url, model, text):
    """An answer that follows a schema."""
    return llm(url, model).as_structured_llm(Answer).chat(ask(text)).raw.model_dump()


def embed(url, model, texts):
    """Vectors of some texts."""
    return OllamaEmbedding(model_name=model, base_url=url).get_text_embedding_batch(texts)


if __name__ == "__main__":
    run("llama-index-llms-ollama", chat, stream, tools, structured, embed)
