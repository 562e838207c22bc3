"""The clients that are held to the scenarios: where their programs are, what they cannot express, and what they raise.

Read by the suite and by the table in docs/clients.md. What a client lacks is said here with the reason, and shown in the
table: no scenario is left out in silence.
"""

from dataclasses import dataclass, field

# The columns of the table, in order: the name a scenario is marked with, and the head of its column.
SCENARIOS = {
    "chat": "chat",
    "stream": "streamed",
    "tools": "tools",
    "structured": "structured",
    "embed": "embeddings",
    "models": "models",
    "leave": "cancel",
    "unknown": "unknown model",
    "wait": "long wait",
    "wait_whole": "long wait, unstreamed",
    "full": "full queue",
    "restart": "restart",
    "cut": "cut short",
}

NATIVE = "/api/chat"
OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"

LISTS_NOTHING = "the package has no call that lists models"


@dataclass(frozen=True, eq=False)
class Client:
    """One client library."""

    # As its registry knows it.
    package: str
    # Where it comes from, and with that what its program is written in.
    registry: str
    # The file of its program, without the ending.
    program: str
    # How a user points it at foreman.
    base_url: str
    # The route its chats take.
    path: str
    # What it raises for a model that is not there.
    not_found: str
    # Whether it sends a request again by itself where the connection is lost.
    tries_again: bool = False
    # Scenarios it cannot express, each with the reason.
    lacks: dict = field(default_factory=dict)

    @property
    def name(self):
        """The package with its registry: `ollama` and `openai` are names in two of them."""
        return f"{self.registry}: {self.package}"


CLIENTS = [
    Client("ollama", "PyPI", "with_ollama", "`Client(host=…)`, `OLLAMA_HOST`", NATIVE, "ResponseError"),
    Client(
        "openai", "PyPI", "with_openai", "`OpenAI(base_url=…/v1)`, `OPENAI_BASE_URL`", OPENAI, "NotFoundError", tries_again=True
    ),
    Client(
        "anthropic",
        "PyPI",
        "with_anthropic",
        "`Anthropic(base_url=…)`, `ANTHROPIC_BASE_URL`",
        ANTHROPIC,
        "NotFoundError",
        tries_again=True,
        lacks={
            "embed": "this API has no embeddings",
            "structured": "Ollama does not read the `format` of `output_config` on `/v1/messages`",
        },
    ),
    Client(
        "langchain-ollama",
        "PyPI",
        "with_langchain",
        "`ChatOllama(base_url=…)`, `OLLAMA_HOST`",
        NATIVE,
        "ResponseError",
        lacks={"models": LISTS_NOTHING},
    ),
    Client(
        "llama-index-llms-ollama",
        "PyPI",
        "with_llama_index",
        "`Ollama(base_url=…)`",
        NATIVE,
        "ResponseError",
        lacks={"models": LISTS_NOTHING},
    ),
    Client("litellm", "PyPI", "with_litellm", "`completion(api_base=…)`, `OLLAMA_API_BASE`", NATIVE, "NotFoundError"),
    Client("ollama", "npm", "with_ollama", "`new Ollama({host})`", NATIVE, "ResponseError"),
    Client(
        "openai", "npm", "with_openai", "`new OpenAI({baseURL: …/v1})`, `OPENAI_BASE_URL`", OPENAI, "NotFoundError", tries_again=True
    ),
    Client(
        "ai-sdk-ollama",
        "npm",
        "with_ai_sdk",
        "`createOllama({baseURL})`",
        NATIVE,
        "OllamaError",
        lacks={
            "models": LISTS_NOTHING,
            "leave": "its abort ends the iteration and not the connection: the answer is made to its end",
        },
    ),
    Client("ollama-rs", "crates.io", "with_ollama_rs", "`Ollama::builder().url(…)`", NATIVE, "OllamaError::Other"),
]
