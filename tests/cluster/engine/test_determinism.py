"""Deterministic mode: a request's log-probabilities are the same to the bit, come what may."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.engine.request import TokenEvent
from model.config import ModelConfig
from model.experts import ExpertShard, networks_of
from model.linear import TILE_ROWS
from model.transformer import Transformer
from routing.experts import Experts, LocalExperts
from tests.checkpoints import TINY_DENSE, TINY_MOE, random_tensors
from tests.cluster.engine.running import Recorder, add, finish
from tests.routing.hosts import MemoryCluster

NUM_TOKENS = 24
PROMPT = [1, *range(3, 90)]
MOE = replace(TINY_MOE, dim=96, hidden_dim=200, num_heads=6, num_kv_heads=3)
# Whole panels, which the compiled products take, where there are any.
PANELS = replace(TINY_MOE, dim=128, hidden_dim=192, num_heads=8, num_kv_heads=4)
DENSE = replace(TINY_DENSE, window_tokens=64)


def tensors_of(config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in random_tensors(config, seed=1).items()}


def local_experts(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Experts:
    shard = ExpertShard()
    for expert_id in range(config.num_experts):
        networks = networks_of(tensors, config.num_layers, expert_id, TILE_ROWS)
        shard.add(expert_id, networks)
    return LocalExperts(shard.compute_rows)


def engine_of(
    config: ModelConfig, dtype: torch.dtype, experts: Experts | None = None, **limits: int
) -> Engine:
    tensors = tensors_of(config, dtype)
    engine_config = EngineConfig(**limits)
    transformer = Transformer(config, tensors, is_deterministic=True)
    experts = experts or local_experts(config, tensors)
    return Engine(ModelRunner(transformer, experts, engine_config), engine_config)


def ask(engine: Engine, num_output: int = 0, known: list[TokenEvent] | None = None) -> Recorder:
    """Queue the request that is watched, perhaps with the first of its tokens known already."""
    output_ids = [event.token_id for event in (known or [])[:num_output]]
    params = {"max_tokens": NUM_TOKENS, "num_logprobs": 20}
    return add(engine, f"watched-{num_output}", PROMPT, output_ids, **params)


def add_company(engine: Engine) -> None:
    for number, num_prompt in enumerate((1, 50, 9, 130)):
        prompt_ids = [1, *(5 + (7 * place + number) % 300 for place in range(num_prompt - 1))]
        add(engine, f"company-{number}", prompt_ids, max_tokens=8 + number)


def in_company(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    engine = engine_of(config, dtype)
    add_company(engine)
    engine.step()
    watched = ask(engine)
    finish(engine)
    return watched.events


def in_small_chunks(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    engine = engine_of(config, dtype, step_tokens=7)
    add_company(engine)
    watched = ask(engine)
    finish(engine)
    return watched.events


def in_micro_batches(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    engine = engine_of(config, dtype, num_micro_batches=3)
    add_company(engine)
    watched = ask(engine)
    finish(engine)
    return watched.events


def on_few_blocks(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    """Others come first and grow, so it is preempted, and begins anew with some of its tokens."""
    engine = engine_of(config, dtype, kv_tokens=176, block_tokens=8)
    for number in range(2):
        add(engine, f"company-{number}", [1, *range(100, 140)], max_tokens=60 + number)
    watched = ask(engine)
    finish(engine)
    assert engine.stats().num_preempted > 0
    return watched.events


def with_a_known_prefix(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    engine = engine_of(config, dtype, block_tokens=8)
    add(engine, "before", PROMPT[:60], max_tokens=3)
    finish(engine)
    watched = ask(engine)
    finish(engine)
    assert engine.stats().num_reused_tokens > 0
    return watched.events


def after_a_router_was_lost(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    first, second = engine_of(config, dtype), engine_of(config, dtype)
    begun = ask(first)
    while len(begun.events) < 9:
        first.step()
    add_company(second)
    resumed = ask(second, 9, begun.events)
    finish(second)
    return begun.events + resumed.events


def alone(config: ModelConfig, dtype: torch.dtype) -> list[TokenEvent]:
    engine = engine_of(config, dtype)
    watched = ask(engine)
    finish(engine)
    return watched.events


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [MOE, PANELS, DENSE], ids=["moe", "panels", "dense"])
@pytest.mark.parametrize(
    "way",
    [
        in_company,
        in_small_chunks,
        in_micro_batches,
        on_few_blocks,
        with_a_known_prefix,
        after_a_router_was_lost,
    ],
    ids=lambda way: way.__name__,
)
def test_log_probabilities_are_the_same_to_the_bit(
    way: Callable[[ModelConfig, torch.dtype], list[TokenEvent]],
    config: ModelConfig,
    dtype: torch.dtype,
) -> None:
    expected = alone(config, dtype)

    assert len(expected) == NUM_TOKENS
    assert way(config, dtype) == expected


@pytest.mark.parametrize("num_hosts", [1, 3])
def test_log_probabilities_are_the_same_wherever_experts_sit(num_hosts: int) -> None:
    tensors = tensors_of(MOE, torch.float32)
    cluster = MemoryCluster(MOE, tensors, num_hosts, tile_rows=TILE_ROWS)
    engine = engine_of(MOE, torch.float32, cluster.experts)

    add_company(engine)
    watched = ask(engine)
    finish(engine)

    assert watched.events == alone(MOE, torch.float32)
