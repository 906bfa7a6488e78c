"""The answers of the OpenAI-style API, as types of plain dictionaries."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from cluster.engine.request import FinishReason


class Usage(TypedDict):
    """Tokens counted. A prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """One token that might have come; `bytes` is null for one without text."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One token that came, and what else might have."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat choice, one entry for each token."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log-probabilities of a text choice; the lists run in step."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(TypedDict):
    """The answer of a chat."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One choice of a whole chat answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: NotRequired[list[int]]


class ChatDelta(TypedDict):
    """What a chat choice gained."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """One choice of a chunk of a chat stream."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: NotRequired[list[int]]


class TextChoice(TypedDict):
    """One choice of a text answer, whole or a chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class Envelope(TypedDict):
    """What every answer and chunk carries. `usage` is null in all chunks but the last."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]


class ChatResponse(Envelope):
    """The answer of /v1/chat/completions."""

    choices: list[ChatChoice]


class ChatChunk(Envelope):
    """One event of a streamed /v1/chat/completions."""

    choices: list[ChatChunkChoice]


class TextResponse(Envelope):
    """The answer of /v1/completions, and one event of it when streamed."""

    choices: list[TextChoice]


class Capabilities(TypedDict):
    """What a model can do, as Mistral's client wants to know."""

    completion_chat: bool
    completion_fim: bool
    function_calling: bool
    fine_tuning: bool
    vision: bool


class ModelCard(TypedDict):
    """One served model; OpenAI's, Mistral's and vLLM's fields side by side."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["base"]
    capabilities: Capabilities
    max_context_length: int
    max_model_len: int


class ModelList(TypedDict):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


def model_card(name: str, created: int, context_tokens: int) -> ModelCard:
    """Describe a served model."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mixray",
        "type": "base",
        "capabilities": {
            "completion_chat": True,
            "completion_fim": False,
            "function_calling": False,
            "fine_tuning": False,
            "vision": False,
        },
        "max_context_length": context_tokens,
        "max_model_len": context_tokens,
    }
