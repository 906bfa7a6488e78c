"""mixray's engine in this process, as the benchmarks drive it: loaded, or with random weights.

This file and `link_adapter.py` alone know mixray from inside. Streams are prompts that are
generated from greedily, to their full length, end token or not.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.engine.request import GenerateRequest, TokenEvent
from loadtest.bench.sizes import Size
from model.batch import ForwardBatch
from model.cache import PagedCache
from model.checkpoint.load import Checkpoint, open_checkpoint
from model.checkpoint.names import expected_shapes, router_names
from model.config import ModelConfig
from model.experts import ExpertShard, load_experts, networks_of
from model.sampling_params import SamplingParams
from model.transformer import Transformer
from routing.experts import ExpertCall, Experts, Forward, LocalExperts, PendingCall

Limits = EngineConfig


@dataclass(slots=True)
class Stream:
    """One request, and when its tokens came. `error` is what ended it, if anything but its end."""

    times_s: list[float] = field(default_factory=list)
    error: Exception | None = None
    now_s: Callable[[], float] = time.perf_counter

    def token(self, event: TokenEvent) -> None:
        """Called by the engine."""
        self.times_s.append(self.now_s())

    def failed(self, error: Exception) -> None:
        """Called by the engine."""
        self.error = error


class DrivenEngine:
    """An engine in this process, stepped by hand."""

    def __init__(self, transformer: Transformer, experts: Experts, limits: Limits) -> None:
        self._engine = Engine(ModelRunner(transformer, experts, limits), limits)
        self._numbers = itertools.count()

    def add(self, prompt_ids: Sequence[int], num_tokens: int) -> Stream:
        """Queue a request."""
        stream = Stream()
        request = GenerateRequest(
            request_id=f"bench-{next(self._numbers)}",
            prompt_ids=tuple(prompt_ids),
            params=SamplingParams(max_tokens=num_tokens),
        )
        self._engine.add_request(request, stream)
        return stream

    def step(self) -> None:
        """Run one step."""
        self._engine.step()


@dataclass(slots=True)
class ModelTime:
    """Seconds inside the model: the transformer's forward pass and its experts, nothing else."""

    seconds: float = 0.0

    def note(self, started_s: float) -> None:
        """Add what has passed since."""
        self.seconds += time.perf_counter() - started_s


class TimedTransformer(Transformer):
    """A transformer that notes the time its forward passes take between expert calls."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], model_time: ModelTime
    ) -> None:
        super().__init__(config, weights)
        self._model_time = model_time

    def forward(self, batch: ForwardBatch, cache: PagedCache) -> Forward[Tensor]:
        """Run one step, as the transformer does."""
        forward = super().forward(batch, cache)
        answer: Tensor | None = None
        while True:
            started_s = time.perf_counter()
            try:
                call = next(forward) if answer is None else forward.send(answer)
            except StopIteration as end:
                logits: Tensor = end.value
                return logits
            finally:
                self._model_time.note(started_s)
            answer = yield call


class TimedExperts:
    """Experts that note their time; right for those that answer at once."""

    def __init__(self, experts: Experts, model_time: ModelTime) -> None:
        self._experts = experts
        self._model_time = model_time

    def start(self, call: ExpertCall) -> PendingCall:
        """Compute the call."""
        started_s = time.perf_counter()
        try:
            return self._experts.start(call)
        finally:
            self._model_time.note(started_s)


def load_transformer(
    checkpoint: Checkpoint,
    make: Callable[[ModelConfig, Mapping[str, Tensor]], Transformer] = Transformer,
) -> Transformer:
    """Load a router's share of a model as `cluster.router` does."""
    [transformer] = checkpoint.build(
        lambda weights: make(checkpoint.config, weights),
        [router_names(checkpoint.config)],
        checkpoint.config.dtype,
    )
    return transformer


def load_shard(checkpoint: Checkpoint, expert_ids: Iterable[int]) -> ExpertShard:
    """Load experts as routers and expert hosts do, one network after another."""
    shard = ExpertShard()
    for expert_id, networks in load_experts(checkpoint, expert_ids, checkpoint.config.dtype):
        shard.add(expert_id, networks)
    return shard


def local_engine(folder: Path, limits: Limits | None = None) -> tuple[DrivenEngine, int]:
    """Make an engine whose experts are in this process; and its vocabulary."""
    checkpoint = open_checkpoint(folder)
    shard = load_shard(checkpoint, range(checkpoint.config.num_experts))
    experts = LocalExperts(shard.compute_rows)
    engine = DrivenEngine(load_transformer(checkpoint), experts, limits or Limits())
    return engine, checkpoint.config.vocab_size


def timed_engine(folder: Path, limits: Limits) -> tuple[DrivenEngine, ModelTime, int]:
    """Make a local engine that tells how much of its steps the model takes."""
    checkpoint = open_checkpoint(folder)
    model_time = ModelTime()
    transformer = load_transformer(
        checkpoint, lambda config, weights: TimedTransformer(config, weights, model_time)
    )
    shard = load_shard(checkpoint, range(checkpoint.config.num_experts))
    experts = TimedExperts(LocalExperts(shard.compute_rows), model_time)
    return DrivenEngine(transformer, experts, limits), model_time, checkpoint.config.vocab_size


def random_engine(
    size: Size,
    limits: Limits | None = None,
    *,
    device: str = "cpu",
    context_tokens: int = 32_768,
    window_tokens: int | None = None,
) -> tuple[DrivenEngine, int]:
    """Make a local engine with random weights, drawn on the device; and its vocabulary."""
    config = config_of(size, context_tokens, window_tokens)
    weights = RandomWeights(config, torch.device(device))
    shard = ExpertShard()
    for expert_id in range(config.num_experts):
        shard.add(expert_id, networks_of(weights, config.num_layers, expert_id))
    experts = LocalExperts(shard.compute_rows)
    engine = DrivenEngine(Transformer(config, weights), experts, limits or Limits())
    return engine, config.vocab_size


def config_of(size: Size, context_tokens: int, window_tokens: int | None) -> ModelConfig:
    """Describe a model of this size as mixray does."""
    return ModelConfig(
        dim=size.hidden,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        num_kv_heads=size.num_kv_heads,
        head_dim=size.head_dim,
        hidden_dim=size.ffn,
        vocab_size=size.vocab_size,
        norm_eps=1e-5,
        rope_theta=1e6,
        context_tokens=context_tokens,
        window_tokens=window_tokens,
        num_experts=size.num_experts,
        top_k=size.top_k,
    )


class RandomWeights(Mapping[str, Tensor]):
    """Weights by our names, drawn when asked for: whoever prepares one need not hold all.

    Normal, norms are ones. A weight is the same whenever it is drawn.
    """

    def __init__(self, config: ModelConfig, device: torch.device, std: float = 0.02) -> None:
        self._shapes = expected_shapes(config)
        self._dtype = getattr(torch, config.dtype)
        self._device = device
        self._std = std

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        weight = torch.ones(shape, dtype=self._dtype, device=self._device)
        if len(shape) > 1:
            generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
            weight.normal_(0.0, self._std, generator=generator)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
