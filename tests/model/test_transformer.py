"""The model against transformers, and against itself at other chunk sizes."""

import random
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from tests.checkpoints import TINY_DENSE, TINY_MOE, random_tensors, write_hugging_face
from tests.oracles.hugging_face import oracle_logits
from tests.running import build, generate, logits_of, new_cache

NUM_CONFIGS = 44


def random_config(seed: int) -> ModelConfig:
    """A small model of random shape; every kind comes up among the seeds."""
    rng = random.Random(seed)
    num_kv_heads = rng.choice([1, 2, 3])
    num_experts = 0 if seed % 4 == 3 else rng.choice([1, 2, 3, 4, 8])
    return ModelConfig(
        dim=rng.choice([32, 40, 64]),
        num_layers=rng.choice([1, 2, 3]),
        num_heads=num_kv_heads * rng.choice([1, 2, 4]),
        num_kv_heads=num_kv_heads,
        head_dim=rng.choice([8, 16, 24]),
        hidden_dim=rng.choice([48, 96]),
        vocab_size=rng.choice([160, 257]),
        norm_eps=rng.choice([1e-5, 1e-6]),
        rope_theta=rng.choice([1e4, 1e6]),
        context_tokens=512,
        window_tokens=rng.choice([None, 7, 32]),
        num_experts=num_experts,
        top_k=rng.randint(1, num_experts) if num_experts else 0,
        tied_embeddings=rng.random() < 0.3,
        dtype="float32",
    )


@pytest.mark.parametrize("seed", range(NUM_CONFIGS))
def test_logits_and_greedy_tokens_equal_those_of_transformers(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    transformer, experts = build(config, random_tensors(config, seed))
    prompt_ids = [random.Random(seed).randrange(config.vocab_size) for _ in range(23)]

    ours = generate(transformer, experts, prompt_ids, 200)
    logits = logits_of(transformer, experts, new_cache(config, 223), prompt_ids + ours)

    # Given the same tokens before it, each of ours is the oracle's own choice: by induction the
    # two greedy sequences are one.
    wanted = oracle_logits(write_hugging_face(tmp_path, config, seed), prompt_ids + ours)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert wanted[22:-1].argmax(-1).tolist() == ours


@pytest.mark.parametrize("config", [TINY_MOE, TINY_DENSE], ids=["moe", "windowed dense"])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 32, 50, 97])
def test_prefill_in_chunks_equals_prefill_in_one_piece(
    config: ModelConfig, chunk_tokens: int
) -> None:
    transformer, experts = build(config, random_tensors(config, 7))
    token_ids = [random.Random(7).randrange(config.vocab_size) for _ in range(150)]
    whole = logits_of(transformer, experts, new_cache(config, 150), token_ids)

    cache = new_cache(config, 150)
    parts = [
        logits_of(transformer, experts, cache, token_ids[first : first + chunk_tokens])
        for first in range(0, len(token_ids), chunk_tokens)
    ]

    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)
