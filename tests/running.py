"""Running a model in one process, for tests: build it, prefill it, decode greedily."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.batch import Chunk, pack
from model.cache import KVCache
from model.config import ModelConfig
from model.experts import ExpertShard
from model.transformer import Transformer
from routing.experts import Experts, LocalExperts, drive

CPU = torch.device("cpu")


def build(config: ModelConfig, tensors: dict[str, Tensor]) -> tuple[Transformer, LocalExperts]:
    """A transformer and its experts from tensors by our names."""
    return Transformer(config, tensors), LocalExperts(shard_of(config, tensors).compute_rows)


def shard_of(
    config: ModelConfig, tensors: dict[str, Tensor], expert_ids: Sequence[int] | None = None
) -> ExpertShard:
    """A shard with some of the experts, or all of them."""
    shard = ExpertShard()
    wanted = range(config.num_experts) if expert_ids is None else expert_ids
    shard.add(tensors, config.num_layers, wanted)
    return shard


def new_cache(config: ModelConfig, max_tokens: int) -> KVCache:
    return KVCache(config, max_tokens, torch.float32, CPU)


@torch.inference_mode()
def logits_of(
    transformer: Transformer, experts: Experts, cache: KVCache, token_ids: list[int]
) -> Tensor:
    """Extend `cache` by one chunk; logits of all its positions, (T, V)."""
    batch = pack([Chunk(cache, token_ids)], CPU, all_logits=True)
    [logits_TV] = drive([transformer.forward(batch)], experts)
    return logits_TV


def generate(
    transformer: Transformer, experts: Experts, prompt_ids: list[int], num_tokens: int
) -> list[int]:
    """Greedy ids after the prompt."""
    cache = new_cache(transformer.config, len(prompt_ids) + num_tokens)
    token_ids = list(prompt_ids)
    chunk = prompt_ids
    for _ in range(num_tokens):
        chunk = [int(logits_of(transformer, experts, cache, chunk)[-1].argmax())]
        token_ids += chunk
    return token_ids[len(prompt_ids) :]
