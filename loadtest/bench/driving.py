"""Cells of engines, on anything that takes streams and steps. Knows no mixray, no torch."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from loadtest.bench.answer import Values
from loadtest.bench.cells import TOKENS_PER_S, Cell

BOS_ID = 1
# The ids below are control tokens.
FIRST_ID = 3
WARM_UP_TOKENS = 3

Clock = Callable[[], float]


class NotAnswered(Exception):
    """A stream ended before its time."""


class Streaming(Protocol):
    """A request under way: when its tokens came, and what ended it if it failed."""

    times_s: list[float]
    error: Exception | None


class Steps(Protocol):
    """An engine that is stepped by hand."""

    def add(self, prompt_ids: Sequence[int], num_tokens: int) -> Streaming:
        """Queue a request."""

    def step(self) -> None:
        """Run one step."""


class Driver:
    """Measures cells on one engine. Prompts are random, so that no cache knows them."""

    def __init__(self, engine: Steps, vocab_size: int, seed: int, now_s: Clock) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._rng = random.Random(seed)
        self._now_s = now_s

    def measure(self, cell: Cell) -> Values:
        """Warm up, then measure the cell as often as it asks for."""
        self._generate(cell.batch, cell.prompt_tokens, min(WARM_UP_TOKENS, cell.new_tokens))
        rates = {"decode": self._decode, "prefill": self._prefill, "burst": self._burst}
        return {TOKENS_PER_S: [rates[cell.kind](cell) for _ in range(cell.repeats)]}

    def _decode(self, cell: Cell) -> float:
        """Tokens per second once every stream has its first."""
        streams = self._generate(cell.batch, cell.prompt_tokens, cell.new_tokens)
        return decode_rate([stream.times_s for stream in streams])

    def _prefill(self, cell: Cell) -> float:
        started_s = self._now_s()
        streams = self._generate(cell.batch, cell.prompt_tokens, 1)
        seconds = max(stream.times_s[0] for stream in streams) - started_s
        return cell.batch * cell.prompt_tokens / seconds

    def _burst(self, cell: Cell) -> float:
        """Tokens per second from the moment the requests are there until the last token is."""
        started_s = self._now_s()
        streams = self._generate(cell.batch, cell.prompt_tokens, cell.new_tokens)
        seconds = max(stream.times_s[-1] for stream in streams) - started_s
        return cell.batch * cell.new_tokens / seconds

    def _generate(self, batch: int, prompt_tokens: int, num_tokens: int) -> list[Streaming]:
        prompts = [self._prompt(prompt_tokens) for _ in range(batch)]
        streams = [self._engine.add(prompt, num_tokens) for prompt in prompts]
        finish(self._engine, streams, num_tokens)
        return streams

    def _prompt(self, num_tokens: int) -> list[int]:
        return random_prompt(self._rng, num_tokens, self._vocab_size)


def random_prompt(rng: random.Random, num_tokens: int, vocab_size: int) -> list[int]:
    """Draw ids, after the one that begins a text."""
    drawn = (rng.randrange(FIRST_ID, vocab_size) for _ in range(num_tokens - 1))
    return [BOS_ID, *drawn]


def finish(engine: Steps, streams: Sequence[Streaming], num_tokens: int) -> None:
    """Step until every stream has so many tokens.

    Raises:
        NotAnswered: one failed.
    """
    while any(len(stream.times_s) < num_tokens for stream in streams):
        engine.step()
        for stream in streams:
            if stream.error is not None:
                raise NotAnswered(str(stream.error)) from stream.error


def decode_rate(times_s: Sequence[Sequence[float]]) -> float:
    """Tokens per second of all streams together, from the moment the last got its first token.

    Streams that came at 1, 2, 3 and 2, 3, 4: from 2 on there are 3 tokens in 2 s.
    """
    began_s = max(stream[0] for stream in times_s)
    ended_s = max(stream[-1] for stream in times_s)
    num_tokens = sum(time_s > began_s for stream in times_s for time_s in stream)
    return num_tokens / (ended_s - began_s)
