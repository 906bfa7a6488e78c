"""Small checkpoints with random weights, written in both layouts, for every test that loads one."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_common
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.names import expected_shapes
from model.config import ModelConfig

TINY_MOE = ModelConfig(
    dim=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    vocab_size=320,
    norm_eps=1e-5,
    rope_theta=1e6,
    context_tokens=512,
    num_experts=8,
    top_k=2,
    dtype="float32",
)

TINY_DENSE = ModelConfig(
    dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=1,
    head_dim=16,
    hidden_dim=80,
    vocab_size=320,
    norm_eps=1e-6,
    rope_theta=1e4,
    context_tokens=512,
    window_tokens=32,
    dtype="float32",
)

_HF_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_HF_PARTS = {
    ".attention.wq.": ".self_attn.q_proj.",
    ".attention.wk.": ".self_attn.k_proj.",
    ".attention.wv.": ".self_attn.v_proj.",
    ".attention.wo.": ".self_attn.o_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".gate.": ".block_sparse_moe.gate.",
    ".experts.": ".block_sparse_moe.experts.",
}


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Give random float32 weights by our names, scaled so that logits stay spread."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 1.0 + 0.1 * values
        elif name != "tok_embeddings.weight":
            values = values / math.sqrt(shape[1])
        tensors[name] = values
    return tensors


def write_hugging_face(
    folder: Path, config: ModelConfig, seed: int = 0, shards: int = 1, dtype: str = "float32"
) -> Path:
    """Write a checkpoint as transformers does, without a tokenizer; gives the folder."""
    tensors = {
        hugging_face_name(name): tensor.to(getattr(torch, dtype))
        for name, tensor in random_tensors(config, seed).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hugging_face_config(config) | {"dtype": dtype})
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    files = _split(tensors, shards, "model-{:05}-of-{:05}.safetensors")
    for file, part in files.items():
        save_file(part, folder / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_consolidated(
    folder: Path, config: ModelConfig, seed: int = 0, shards: int = 1, dtype: str = "float32"
) -> Path:
    """Write a checkpoint as Mistral does, without a tokenizer; gives the folder."""
    tensors = {
        name.replace(".experts.", ".feed_forward.experts.").replace(
            ".gate.", ".feed_forward.gate."
        ): interleaved(name, tensor, config.head_dim).to(getattr(torch, dtype))
        for name, tensor in random_tensors(config, seed).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "params.json", params(config))
    pattern = "consolidated-{:05}-of-{:05}.safetensors"
    for file, part in _split(tensors, shards, pattern).items():
        save_file(part, folder / ("consolidated.safetensors" if shards == 1 else file))
    return folder


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """Give the content of config.json, as transformers 5 writes it."""
    content = {
        "architectures": ["MixtralForCausalLM" if config.is_moe else "MistralForCausalLM"],
        "model_type": "mixtral" if config.is_moe else "mistral",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "max_position_embeddings": config.context_tokens,
        "sliding_window": config.window_tokens,
        "tie_word_embeddings": config.tied_embeddings,
        "dtype": config.dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if config.is_moe:
        content |= {"num_local_experts": config.num_experts, "num_experts_per_tok": config.top_k}
    return content


def params(config: ModelConfig) -> dict[str, Any]:
    """Give the content of params.json."""
    content: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.num_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
        "max_seq_len": config.context_tokens,
    }
    if config.window_tokens is not None:
        content["sliding_window"] = config.window_tokens
    if config.tied_embeddings:
        content["tied_embeddings"] = True
    if config.is_moe:
        content["moe"] = {"num_experts": config.num_experts, "num_experts_per_tok": config.top_k}
    return content


def interleaved(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Reorder query and key rows from rotary halves to rotary neighbours: 0 2 1 3 to 0 1 2 3."""
    if not name.endswith(("wq.weight", "wk.weight")):
        return tensor
    half = head_dim // 2
    within = [row // 2 + (row % 2) * half for row in range(head_dim)]
    heads = range(tensor.shape[0] // head_dim)
    return tensor[[head * head_dim + row for head in heads for row in within]]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2))


def hugging_face_name(name: str) -> str:
    """Give Hugging Face's name of one of our tensors."""
    if name in _HF_NAMES:
        return _HF_NAMES[name]
    ours, theirs = next(item for item in _HF_PARTS.items() if item[0] in name)
    return "model." + name.replace(ours, theirs)


def _split(
    tensors: Mapping[str, Tensor], shards: int, pattern: str
) -> dict[str, dict[str, Tensor]]:
    names = list(tensors)
    size = math.ceil(len(names) / shards)
    return {
        pattern.format(number + 1, shards): {
            name: tensors[name] for name in names[number * size : (number + 1) * size]
        }
        for number in range(shards)
    }


def write_serving_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a tiny Mixtral with the real 32,000-piece tokenizer, ready to be served."""
    write_hugging_face(folder, replace(TINY_MOE, vocab_size=32_000), seed)
    copy_mixtral_tokenizer(folder)
    return folder


def copy_mixtral_tokenizer(folder: Path) -> None:
    """Put the tokenizer of Mixtral 8x7B, which mistral-common carries, into a checkpoint."""
    data = Path(mistral_common.__file__).parent / "data"
    shutil.copy(data / "tokenizer.model.v1", folder / "tokenizer.model")
