"""An engine on a tiny model, stepped by hand, and runners that fail on purpose."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.block_tables import Copy
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.engine.request import FinishReason, GenerateRequest, TokenEvent
from model.batch import Chunk
from model.config import ModelConfig
from model.sampling_params import SamplingParams
from tests.checkpoints import TINY_MOE, random_tensors
from tests.running import build, generate

POISON_ID = 319
STEPS_AT_MOST = 2_000

WINDOWED_MOE = replace(TINY_MOE, window_tokens=8)
SEEDED = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
LENGTHS = [(1, 12), (40, 7), (3, 20), (17, 1), (25, 9)]
"""Tokens of prompt and answer."""


@dataclass
class Recorder:
    """A listener that keeps what it hears."""

    events: list[TokenEvent] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def token(self, event: TokenEvent) -> None:
        self.events.append(event)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    @property
    def ids(self) -> list[int]:
        return [event.token_id for event in self.events]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.events[-1].finish_reason if self.events else None

    @property
    def is_over(self) -> bool:
        return bool(self.errors) or self.finish_reason is not None


class PoisonedRunner(ModelRunner):
    """Fails after the caches are written, whenever the poison is among a step's tokens."""

    def run(self, chunks: Sequence[Chunk], copies: Sequence[Copy] = ()) -> Tensor:
        logits_BV = super().run(chunks, copies)
        if any(POISON_ID in chunk.token_ids for chunk in chunks):
            raise RuntimeError("poisoned on purpose")
        return logits_BV


class ScriptedRunner(ModelRunner):
    """Raises `error` in the step number `at`, counted from 0."""

    def __init__(self, *args: Any, at: int, error: Exception) -> None:
        super().__init__(*args)
        self.num_steps = 0
        self._at = at
        self._error = error

    def run(self, chunks: Sequence[Chunk], copies: Sequence[Copy] = ()) -> Tensor:
        self.num_steps += 1
        if self.num_steps - 1 == self._at:
            raise self._error
        return super().run(chunks, copies)


def runner_of(
    config: ModelConfig,
    engine_config: EngineConfig,
    kind: Callable[..., ModelRunner] = ModelRunner,
) -> ModelRunner:
    transformer, experts = build(config, random_tensors(config, seed=1))
    return kind(transformer, experts, engine_config)


def engine_of(
    config: ModelConfig, kind: Callable[..., ModelRunner] = ModelRunner, **limits: int
) -> Engine:
    engine_config = EngineConfig(**limits)
    return Engine(runner_of(config, engine_config, kind), engine_config)


def golden(config: ModelConfig, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy ids after the prompt, from the model alone, without an engine."""
    return generate(*build(config, random_tensors(config, seed=1)), list(prompt_ids), num_tokens)


def request(
    request_id: str,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int] = (),
    priority: int = 0,
    cache_salt: str = "",
    **params: Any,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_ids=tuple(prompt_ids),
        params=SamplingParams(**params),
        output_ids=tuple(output_ids),
        priority=priority,
        cache_salt=cache_salt,
    )


def add(engine: Engine, *args: Any, **params: Any) -> Recorder:
    """Queue a request; `args` and `params` as those of `request`."""
    recorder = Recorder()
    engine.add_request(request(*args, **params), recorder)
    return recorder


def finish(engine: Engine) -> None:
    """Step until nothing is left to do."""
    engine.step()
    for _ in range(STEPS_AT_MOST):
        stats = engine.stats()
        if not stats.num_running + stats.num_waiting:
            return
        engine.step()
    raise AssertionError(f"not finished after {STEPS_AT_MOST} steps: {engine.stats()}")


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [1, *(rng.randrange(3, POISON_ID) for _ in range(num_tokens - 1))]


def add_all(engine: Engine) -> list[Recorder]:
    """Queue one greedy request of each of the LENGTHS."""
    return [
        add(engine, str(number), prompt_of(prompt), max_tokens=answer)
        for number, (prompt, answer) in enumerate(LENGTHS)
    ]


def golden_of_all(config: ModelConfig) -> list[list[int]]:
    return [golden(config, prompt_of(prompt), answer) for prompt, answer in LENGTHS]


def assert_nothing_is_left(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)
