"""The demo model as a checkpoint folder in Hugging Face's layout, and back."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.demo.network import Network, Shape

# Names of the network's parameters and of the checkpoint's tensors; {n} is the layer.
_TOP = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "experts.gate": "block_sparse_moe.gate",
}
_STACKED = ("w1", "w2", "w3")


def hugging_face_config(shape: Shape) -> dict[str, Any]:
    """The content of `config.json`, with the keys of transformers' MixtralConfig."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.dim,
        "initializer_range": 0.02,
        "intermediate_size": shape.hidden_dim,
        "max_position_embeddings": shape.context_tokens,
        "model_type": "mixtral",
        "num_attention_heads": shape.num_heads,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "num_local_experts": shape.num_experts,
        "output_router_logits": False,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def save_network(network: Network, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, each whole or not at all."""
    config = json.dumps(hugging_face_config(network.shape), indent=2) + "\n"
    _replace(folder / "config.json", config.encode())
    partial = folder / "model.safetensors.partial"
    save_file(hugging_face_tensors(network), partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, folder / "model.safetensors")


def load_network(folder: Path) -> Network:
    """The network of a folder that `save_network` wrote, computing in float32 as serving does."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocab_size=config["vocab_size"],
        context_tokens=config["max_position_embeddings"],
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        hidden_dim=config["intermediate_size"],
        num_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
    )
    network = Network(shape, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    state = {name: _gather(tensors, names) for name, names in _names(shape)}
    network.load_state_dict(state)
    return network


def hugging_face_tensors(network: Network) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name; experts are taken apart."""
    state = network.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, names in _names(network.shape):
        parts = [state[name]] if len(names) == 1 else list(state[name])
        for part_name, part in zip(names, parts, strict=True):
            tensors[part_name] = part.detach().clone()
    return tensors


def _names(shape: Shape) -> Iterator[tuple[str, list[str]]]:
    """Each parameter of the network with the tensors that it is made of."""
    for ours, theirs in _TOP.items():
        yield ours, [theirs]
    for n in range(shape.num_layers):
        for ours, theirs in _LAYER.items():
            yield f"blocks.{n}.{ours}", [f"model.layers.{n}.{theirs}.weight"]
        experts = f"model.layers.{n}.block_sparse_moe.experts"
        for w in _STACKED:
            stacked = [f"{experts}.{e}.{w}.weight" for e in range(shape.num_experts)]
            yield f"blocks.{n}.experts.{w}", stacked


def _gather(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    if len(names) == 1:
        return tensors[names[0]]
    return torch.stack([tensors[name] for name in names])


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
