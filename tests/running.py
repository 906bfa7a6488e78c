"""Running a model in one process, for tests: build it, prefill it, decode greedily."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from model.batch import Chunk, pack
from model.cache import PagedCache
from model.config import ModelConfig
from model.experts import ExpertShard, networks_of
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
    for expert_id in wanted:
        shard.add(expert_id, networks_of(tensors, config.num_layers, expert_id))
    return shard


class OneSequence:
    """A cache that one sequence has for itself, in blocks that lie every which way."""

    def __init__(self, config: ModelConfig, max_tokens: int, block_tokens: int = 8) -> None:
        num_blocks = -(-max_tokens // block_tokens)
        self.cache = PagedCache(config, num_blocks, block_tokens, torch.float32, CPU)
        self.blocks = random.Random(max_tokens).sample(range(num_blocks), num_blocks)
        self.num_tokens = 0


def new_cache(config: ModelConfig, max_tokens: int) -> OneSequence:
    return OneSequence(config, max_tokens)


@torch.inference_mode()
def logits_of(
    transformer: Transformer, experts: Experts, sequence: OneSequence, token_ids: list[int]
) -> Tensor:
    """Extend the sequence by one chunk; logits of all its positions, (T, V)."""
    chunk = Chunk(token_ids, sequence.num_tokens, sequence.blocks)
    batch = pack([chunk], sequence.cache, transformer.planner, all_logits=True)
    [logits_TV] = drive([transformer.forward(batch, sequence.cache)], experts)
    sequence.num_tokens += len(token_ids)
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
