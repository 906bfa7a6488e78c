"""An engine on a tiny model, stepped by hand, and runners that fail on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.engine.request import FinishReason, GenerateRequest, TokenEvent
from model.batch import Chunk
from model.config import ModelConfig
from model.sampling_params import SamplingParams
from tests.checkpoints import random_tensors
from tests.running import build, generate

POISON_ID = 319
STEPS_AT_MOST = 2_000


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

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        logits_BV = super().run(chunks)
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

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        self.num_steps += 1
        if self.num_steps - 1 == self._at:
            raise self._error
        return super().run(chunks)


def runner_of(
    config: ModelConfig, kind: Callable[..., ModelRunner] = ModelRunner, num_micro_batches: int = 1
) -> ModelRunner:
    transformer, experts = build(config, random_tensors(config, seed=1))
    return kind(transformer, experts, num_micro_batches)


def engine_of(
    config: ModelConfig, kind: Callable[..., ModelRunner] = ModelRunner, **limits: int
) -> Engine:
    engine_config = EngineConfig(**limits)
    return Engine(runner_of(config, kind, engine_config.num_micro_batches), engine_config)


def golden(config: ModelConfig, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy ids after the prompt, from the model alone, without an engine."""
    return generate(*build(config, random_tensors(config, seed=1)), list(prompt_ids), num_tokens)


def request(
    request_id: str, prompt_ids: Sequence[int], output_ids: Sequence[int] = (), **params: Any
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_ids=tuple(prompt_ids),
        params=SamplingParams(**params),
        output_ids=tuple(output_ids),
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
