"""What the shapes of chat and text answers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.engine.request import TokenEvent
from deploy.api.answers import (
    ChatChunk,
    ChatResponse,
    TextResponse,
    Usage,
)
from deploy.api.generation import Answer, Delta
from deploy.api.prompts import Choice

# JSON has no infinity; OpenAI writes an impossible token's log-probability so.
LOWEST_LOGPROB = -9999.0


class AnswerShape(Protocol):
    """How the choices of one request become whole answers or chunks."""

    def response(self, answers: Sequence[Answer]) -> ChatResponse | TextResponse:
        """Make the whole answer."""
        ...

    def opening(self) -> list[ChatChunk]:
        """Make the chunks that come before any text."""
        ...

    def chunk(self, delta: Delta) -> ChatChunk | TextResponse | None:
        """Make one chunk; None if the delta has nothing to show."""
        ...

    def usage_chunk(self) -> ChatChunk | TextResponse:
        """Make the last chunk, which counts the tokens of all chunks before."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What the client asked to have in its answer.

    Attributes:
        num_per_prompt: choices of each prompt.
    """

    num_per_prompt: int
    include_usage: bool
    return_token_ids: bool


def usage_of(choices: Sequence[Choice], options: AnswerOptions, num_generated: int) -> Usage:
    prompts = choices[:: options.num_per_prompt]
    num_prompt = sum(len(choice.prompt_ids) for choice in prompts)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def token_ids_of(events: Sequence[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


def finite(logprob: float | None) -> float:
    return LOWEST_LOGPROB if logprob is None else max(logprob, LOWEST_LOGPROB)
