"""What the HTTP API needs from the rest: a source of tokens, a tokenizer, the model's name."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.engine.request import GenerateRequest, TokenEvent
from model.config import ModelConfig
from model.tokenizer import Tokenizer


class Backend(Protocol):
    """Generates tokens. Raises the errors of `cluster`, `routing` and `model`, unwrapped."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Sequence[TokenEvent], None]:
        """Give the tokens of one request as they come; closing the generator cancels it."""
        ...

    async def check_ready(self) -> None:
        """Return if a token can be served.

        Raises:
            NotReady: it cannot; says why.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiService:
    """One served model.

    Attributes:
        created: when the model was loaded, in seconds since 1970.
        cache_tokens: most tokens that the KV cache holds for one request, if that is fewer than the
            model's context.
    """

    backend: Backend
    tokenizer: Tokenizer
    model_name: str
    config: ModelConfig
    created: int
    cache_tokens: int | None = None

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        if self.cache_tokens is None:
            return self.config.context_tokens
        return min(self.cache_tokens, self.config.context_tokens)
