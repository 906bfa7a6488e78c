"""The requests of the OpenAI-style API, checked field by field.

Types are strict: "10" and true are no numbers. A field that is not listed here is an error, so that
no client believes in a setting that does nothing.
"""

import secrets
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from deploy.api.fields import (
    MAX_PROMPTS,
    MAX_STOPS,
    PROMPT_SCHEMA,
    STOP_SCHEMA,
    CacheSalt,
    LogitBias,
    MaxTokens,
    Penalty,
    Priority,
    Prompt,
    RepetitionPenalty,
    Seed,
    StopText,
    Text,
    TopK,
    as_list,
    as_prompts,
)
from model.chat import ChatMessage
from model.sampling_params import MAX_LOGPROBS, MAX_SEED, SamplingParams

MAX_CHOICES = 8
MAX_MESSAGES = 8_192
MAX_COMPLETION_LOGPROBS = 5
DEFAULT_COMPLETION_TOKENS = 16

# Accepted and without effect: labels for the provider's books, and hints about speed.
IGNORED_FIELDS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Known to other servers. Accepted with a value that asks for nothing, refused with any other.
UNSUPPORTED_FIELDS: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": (),
    "functions": (),
    "guardrails": (),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prompt_logprobs": (),
    "prompt_mode": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safe_prompt": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
}


class StrictModel(BaseModel):
    """No conversion, no unknown field."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(StrictModel):
    """How an answer is streamed."""

    include_usage: bool = False


class GenerationRequest(StrictModel):
    """What both endpoints share. A null is as good as no field.

    Attributes:
        seed: choice i is drawn with seed + i; without a seed every request draws anew.
        random_seed: Mistral's name for `seed`.
        top_k, min_p, repetition_penalty: vLLM's; see `SamplingParams`.
        logit_bias: by token ids written as texts, for JSON has no other keys.
        priority: lower ones run first, as in vLLM.
        cache_salt: only requests with the same one share a cached prompt, as in vLLM.
        ignore_eos: go on after the end of the answer, up to `max_tokens`; for measurements.
        return_token_ids: add `token_ids` and `prompt_token_ids`, as vLLM does.
    """

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: TopK = 0
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    logit_bias: LogitBias = {}
    max_tokens: MaxTokens | None = None
    stop: Annotated[
        list[StopText],
        Field(max_length=MAX_STOPS),
        BeforeValidator(as_list),
        WithJsonSchema(STOP_SCHEMA),
    ] = []
    seed: Seed | None = None
    random_seed: Seed | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: Priority = 0
    cache_salt: CacheSalt = ""
    ignore_eos: bool = False
    return_token_ids: bool = False

    @field_validator("random_seed")
    @classmethod
    def _check_random_seed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("seed") not in (None, value):
            raise PydanticCustomError("invalid_value", "differs from seed; give one of the two")
        return value

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream", True):
            raise PydanticCustomError("invalid_value", "only with stream true")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def first_seed(self) -> int:
        """Give the seed of choice 0; drawn anew if the request has none."""
        given = self.seed if self.seed is not None else self.random_seed
        return secrets.randbelow(MAX_SEED + 1) if given is None else given

    def sampling(
        self, max_tokens: int, seed: int, eos_id: int, num_logprobs: int | None
    ) -> SamplingParams:
        """Make the engine's parameters of one choice."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items()),
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=() if self.ignore_eos else (eos_id,),
            num_logprobs=num_logprobs,
        )


class Message(StrictModel):
    """One turn of the conversation. What other servers' answers hold besides must be null."""

    role: str
    content: Text
    name: str | None = None
    prefix: bool = False
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError("unsupported_parameter", "only false is served")
        return value

    def to_chat_message(self) -> ChatMessage:
        """Drop all but role and text."""
        return ChatMessage(self.role, self.content)


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @field_validator("max_completion_tokens")
    @classmethod
    def _check_max_tokens(cls, value: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") not in (None, value):
            raise PydanticCustomError(
                "invalid_value", "differs from max_tokens; give one of the two"
            )
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if not info.data.get("logprobs", True):
            raise PydanticCustomError("invalid_value", "only with logprobs true")
        return value

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens to generate; None for what is left of the context."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report at each position; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        list[Prompt],
        Field(min_length=1, max_length=MAX_PROMPTS),
        BeforeValidator(as_prompts),
        WithJsonSchema(PROMPT_SCHEMA),
    ]
    logprobs: int | None = Field(None, ge=0, le=MAX_COMPLETION_LOGPROBS)
