"""LangChain's Ollama package, `langchain-ollama`."""

from contextlib import closing

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel
from speak import look_up, run


class Answer(BaseModel):
    """The shape of a structured answer."""

    answer: str


def chat(url, model, text, tokens):
    """An unstreamed chat: this package streams all the same, and puts the parts together."""
    return {"text": ChatOllama(base_url=url, model=model, num_predict=tokens).invoke(text).content}


def stream(url, model, text, tokens):
    """A streamed chat."""
    with closing(ChatOllama(base_url=url, model=model, num_predict=tokens).stream(text)) as parts:
        for part in parts:
            if part.content:
                yield part.content


def tools(url, model, text):
    """Calls the tool the model asks for, and asks again."""
    asking = ChatOllama(base_url=url, model=model).bind_tools([tool(look_up)])
    messages = [HumanMessage(text)]
    message = asking.invoke(messages)
    call = message.tool_calls[0]
    messages += [message, ToolMessage(look_up(**call["args"]), tool_call_id=call["id"])]
    return {"called": call["name"], "arguments": call["args"], "text": asking.invoke(messages).content}


def structured(url, model, text):
    """An answer that follows a schema."""
    return ChatOllama(base_url=url, model=model).with_structured_output(Answer).invoke(text).model_dump()


def embed(url, model, texts):
    """Vectors of some texts."""
    return OllamaEmbeddings(base_url=url, model=model).embed_documents(texts)


if __name__ == "__main__":
    run("langchain-ollama", chat, stream, tools, structured, embed)
