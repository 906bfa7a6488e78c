"""A checked request to the sequences that the engine must generate.

Everything that can be refused without the engine is refused here, the cheap checks first.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.api.errors import InvalidRequest, ModelNotFound
from deploy.api.fields import MAX_PROMPTS
from deploy.api.schemas import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from deploy.api.service import ApiService
from model.chat import encode_chat
from model.sampling_params import MAX_SEED, SamplingParams

# Encoding this much takes a few milliseconds; more would hold up everybody's streams.
MAX_INLINE_BYTES = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One sequence to generate: one choice of the answer.

    Attributes:
        continues: the text goes on from the prompt's, so it keeps its first space.
    """

    index: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop: tuple[str, ...]
    continues: bool
    priority: int
    cache_salt: str


def check_model(service: ApiService, name: str) -> None:
    """Raise ModelNotFound unless `name` is the served model."""
    if name != service.model_name:
        raise ModelNotFound(
            f"model: {name[:100]!r} is not served here; want {service.model_name!r}",
            "model",
            "model_not_found",
        )


async def chat_choices(service: ApiService, request: ChatRequest) -> list[Choice]:
    """Turn a conversation into its choices.

    Raises:
        ModelNotFound, PromptError, InvalidRequest: it cannot be served; names the field.
    """
    check_model(service, request.model)
    _check_biases(service, request)
    num_bytes = sum(len(message.content.encode()) for message in request.messages)
    _check_length(service, num_bytes, "messages")
    messages = [message.to_chat_message() for message in request.messages]
    prompt_ids = await _encode(num_bytes, lambda: encode_chat(service.tokenizer, messages))
    room = _room(service, prompt_ids, request.wanted_tokens or 1, "messages")
    max_tokens = request.wanted_tokens or room
    return _choices(service, request, [prompt_ids], max_tokens, request.num_logprobs)


async def completion_choices(service: ApiService, request: CompletionRequest) -> list[Choice]:
    """Turn one or several raw prompts into their choices, n for each prompt in turn.

    Raises:
        ModelNotFound, PromptError, InvalidRequest: it cannot be served; names the field.
    """
    check_model(service, request.model)
    _check_biases(service, request)
    if request.n * len(request.prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"n: {request.n} choices of {len(request.prompt)} prompts; "
            f"want at most {MAX_PROMPTS} in all",
            "n",
            "integer_above_max_value",
        )
    prompts = [await _prompt_ids(service, prompt) for prompt in request.prompt]
    wanted = request.max_tokens or 1
    room = min(_room(service, prompt, wanted, "prompt") for prompt in prompts)
    max_tokens = request.max_tokens or min(DEFAULT_COMPLETION_TOKENS, room)
    return _choices(service, request, prompts, max_tokens, request.logprobs)


async def _prompt_ids(service: ApiService, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        num_bytes = len(prompt.encode())
        _check_length(service, num_bytes, "prompt")
        return await _encode(num_bytes, lambda: service.tokenizer.encode(prompt, bos=True))
    _check_id(service, max(prompt), "prompt")
    return prompt


def _check_biases(service: ApiService, request: GenerationRequest) -> None:
    _check_id(service, max(map(int, request.logit_bias), default=0), "logit_bias")


def _check_id(service: ApiService, token_id: int, param: str) -> None:
    vocab_size = service.config.vocab_size
    if token_id >= vocab_size:
        message = f"{param}: token id {token_id}, want ids below {vocab_size}"
        raise InvalidRequest(message, param, "invalid_value")


async def _encode(num_bytes: int, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if num_bytes <= MAX_INLINE_BYTES else await asyncio.to_thread(encode)


def _check_length(service: ApiService, num_bytes: int, param: str) -> None:
    """Refuse a text that cannot fit, before the time is spent to encode it."""
    num_tokens = service.tokenizer.min_tokens(num_bytes)
    if num_tokens >= service.context_tokens:
        raise _too_long(f"{param}: at least {num_tokens} tokens", service, param)


def _room(service: ApiService, prompt_ids: Sequence[int], wanted: int, param: str) -> int:
    """Give how many tokens the context has left; at least `wanted`, or it is an error."""
    room = service.context_tokens - len(prompt_ids)
    if room < wanted:
        message = f"{param}: {len(prompt_ids)} tokens and {wanted} to generate"
        raise _too_long(message, service, param)
    return room


def _too_long(message: str, service: ApiService, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{message}, but the context has {service.context_tokens}", param, "context_length_exceeded"
    )


def _choices(
    service: ApiService,
    request: GenerationRequest,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    num_logprobs: int | None,
) -> list[Choice]:
    seed = request.first_seed()
    eos_id = service.tokenizer.eos_id
    return [
        Choice(
            index=prompt_index * request.n + i,
            prompt_ids=tuple(prompt_ids),
            params=request.sampling(max_tokens, (seed + i) % (MAX_SEED + 1), eos_id, num_logprobs),
            stop=tuple(request.stop),
            continues=isinstance(request, CompletionRequest) and _has_text(service, prompt_ids),
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        for prompt_index, prompt_ids in enumerate(prompts)
        for i in range(request.n)
    ]


def _has_text(service: ApiService, prompt_ids: Sequence[int]) -> bool:
    return any(service.tokenizer.token_bytes(token_id) for token_id in prompt_ids)
