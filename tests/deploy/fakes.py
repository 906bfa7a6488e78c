"""A backend that plays a script, and the service around it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from cluster.engine.request import FinishReason, GenerateRequest, TokenEvent
from deploy.api.service import ApiService
from model.config import ModelConfig
from model.tokenizer import Tokenizer, mixtral_tokenizer

EOS_ID = 2
MODEL = "mixtral"
Step = Sequence[TokenEvent] | Exception
Script = Callable[[GenerateRequest], Sequence[Step]]


@cache
def tokenizer() -> Tokenizer:
    return mixtral_tokenizer()


def config(context_tokens: int = 256) -> ModelConfig:
    return ModelConfig(
        dim=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        hidden_dim=64,
        vocab_size=32_000,
        norm_eps=1e-5,
        rope_theta=1e6,
        context_tokens=context_tokens,
        num_experts=8,
        top_k=2,
    )


def event(token_id: int, finish_reason: FinishReason | None = None) -> TokenEvent:
    """A token of probability e^-1, ahead of `<unk>`, which is impossible."""
    top = ((token_id, -1.0), (0, float("-inf")))
    return TokenEvent(token_id, -1.0, top, finish_reason)


def saying(text: str) -> Script:
    """Say the text, a token at a time, then end; `max_tokens` cuts it short."""

    def script(request: GenerateRequest) -> Sequence[Step]:
        ids = [*tokenizer().encode(text, bos=False), EOS_ID]
        room = request.params.max_tokens
        last: FinishReason = "stop" if len(ids) <= room else "length"
        ids = ids[:room]
        return [(event(token_id),) for token_id in ids[:-1]] + [(event(ids[-1], last),)]

    return script


def playing(*steps: Step) -> Script:
    """Play the steps, whatever was asked."""
    return lambda request: steps


@dataclass
class FakeBackend:
    """Plays a script for each request; after its last step it waits for ever.

    Attributes:
        requests: all that were ever sent.
        num_open: how many are neither finished nor cancelled.
        cancelled: ids of those that were closed before their script ended.
    """

    script: Script = field(default_factory=lambda: saying("Hello world"))
    not_ready: Exception | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    num_open: int = 0
    cancelled: list[str] = field(default_factory=list)
    is_waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Sequence[TokenEvent], None]:
        self.requests.append(request)
        self.num_open += 1
        has_ended = False
        try:
            for step in self.script(request):
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    has_ended = True
                    raise step
                has_ended = bool(step) and step[-1].finish_reason is not None
                yield step
            if not has_ended:
                self.is_waiting.set()
                await asyncio.Event().wait()
        finally:
            self.num_open -= 1
            if not has_ended:
                self.cancelled.append(request.request_id)

    async def check_ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready


def service(backend: FakeBackend, context_tokens: int = 256) -> ApiService:
    return ApiService(
        backend=backend,
        tokenizer=tokenizer(),
        model_name=MODEL,
        config=config(context_tokens),
        created=1_700_000_000,
    )
