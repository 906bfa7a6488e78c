"""Checkpoints that transformers itself writes."""

from pathlib import Path

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes
from tests.checkpoints import TINY_DENSE, TINY_MOE, random_tensors, write_hugging_face


@pytest.fixture(scope="module")
def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    )


def check(folder: Path, model: PreTrainedModel) -> None:
    checkpoint = open_checkpoint(folder)
    found = checkpoint.tensors(expected_shapes(checkpoint.config), "float32")
    state = model.state_dict()
    assert torch.equal(found["tok_embeddings.weight"], state["model.embed_tokens.weight"])
    for layer in range(checkpoint.config.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        query = state[theirs + "self_attn.q_proj.weight"]
        assert torch.equal(found[ours + "attention.wq.weight"], query)
        if not checkpoint.config.is_moe:
            gate = state[theirs + "mlp.gate_proj.weight"]
            assert torch.equal(found[ours + "feed_forward.w1.weight"], gate)
        for expert in range(checkpoint.config.num_experts):
            gate, up = state[theirs + "mlp.experts.gate_up_proj"][expert].chunk(2)
            down = state[theirs + "mlp.experts.down_proj"][expert]
            assert torch.equal(found[ours + f"experts.{expert}.w1.weight"], gate)
            assert torch.equal(found[ours + f"experts.{expert}.w2.weight"], down)
            assert torch.equal(found[ours + f"experts.{expert}.w3.weight"], up)


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("save_original_format", [True, False])
def test_a_saved_mixtral_opens(
    mixtral: PreTrainedModel, max_shard_size: str, save_original_format: bool, tmp_path: Path
) -> None:
    mixtral.save_pretrained(
        tmp_path, max_shard_size=max_shard_size, save_original_format=save_original_format
    )

    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    check(tmp_path, mixtral)


def test_stacked_experts_are_views_into_the_file(mixtral: PreTrainedModel, tmp_path: Path) -> None:
    mixtral.save_pretrained(tmp_path, save_original_format=False)
    checkpoint = open_checkpoint(tmp_path)

    found = checkpoint.tensors(expected_shapes(checkpoint.config), "float32")

    first, third = found["layers.0.experts.1.w1.weight"], found["layers.0.experts.1.w3.weight"]
    assert third.data_ptr() - first.data_ptr() == first.nbytes
    assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_a_saved_mistral_opens(tie_word_embeddings: bool, tmp_path: Path) -> None:
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=tie_word_embeddings,
        )
    )

    model.save_pretrained(tmp_path)

    assert open_checkpoint(tmp_path).config.tied_embeddings == tie_word_embeddings
    assert open_checkpoint(tmp_path).config.window_tokens == 4096
    check(tmp_path, model)


def test_transformers_reads_what_the_tests_write(tmp_path: Path) -> None:
    moe = write_hugging_face(tmp_path / "moe", TINY_MOE, shards=3)
    dense = write_hugging_face(tmp_path / "dense", TINY_DENSE)

    check(moe, MixtralForCausalLM.from_pretrained(moe))
    check(dense, MistralForCausalLM.from_pretrained(dense))


def test_random_weights_keep_logits_spread(tmp_path: Path) -> None:
    model = MixtralForCausalLM.from_pretrained(write_hugging_face(tmp_path, TINY_MOE))
    ids = torch.arange(3, 19)[None]

    with torch.no_grad():
        logits = model(ids).logits[0]

    assert 0.3 < logits.std(dim=-1).mean() < 3.0
    assert len(set(logits.argmax(-1).tolist())) > 8
    assert "layers.0.gate.weight" in random_tensors(TINY_MOE, 0)
