"""Synthetic checkpoints: random weights, a real tokenizer, Hugging Face's layout; made on the spot.

Each tensor has a generator of its own, seeded by its name, so a model is the same wherever and
however often it is made. A folder is written beside its place and moved there once it is whole.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mistral_common
import torch
from safetensors.torch import save_file
from torch import Tensor

from loadtest.bench.sizes import BYTES_PER_PARAMETER, Size

TOKENIZER = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
SHARD_BYTES = 2_000_000_000
SEED = 1234
CONTEXT_TOKENS = 32_768
STD = 0.02
# Wide enough that tokens differ in the experts they choose.
GATE_STD = 0.1

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)

Progress = Callable[[int, int], None]
"""Told the bytes written and the bytes in all."""

Role = Literal["weight", "output", "gate", "norm"]


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor; `role` says how its numbers are drawn."""

    name: str
    shape: tuple[int, ...]
    role: Role = "weight"

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return math.prod(self.shape) * BYTES_PER_PARAMETER


def ensure_checkpoint(folder: Path, size: Size, progress: Progress | None = None) -> Path:
    """Give the folder of this size's model below `folder`, writing it unless it is there."""
    target = folder / size.name
    if is_complete(target, size):
        return target
    shutil.rmtree(target, ignore_errors=True)
    unfinished = folder / f"{size.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write(unfinished, size, progress or (lambda done, total: None))
    unfinished.rename(target)
    return target


def is_complete(target: Path, size: Size) -> bool:
    """Whether the folder holds this very model: its configuration, and shards of the right size."""
    try:
        config = json.loads((target / "config.json").read_text())
        stored = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    except (OSError, ValueError):
        return False
    return bool(config == config_of(size) and stored > sum(p.num_bytes for p in parts_of(size)))


def config_of(size: Size) -> dict[str, Any]:
    """Make `config.json`."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_kv_heads,
        "head_dim": size.head_dim,
        "num_local_experts": size.num_experts,
        "num_experts_per_tok": size.top_k,
        "vocab_size": size.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": CONTEXT_TOKENS,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "initializer_range": STD,
        "router_aux_loss_coef": 0.02,
        "output_router_logits": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def parts_of(size: Size) -> Iterator[Part]:
    """Give all tensors in the order in which they are stored."""
    hidden = (size.hidden,)
    yield Part("model.embed_tokens.weight", (size.vocab_size, size.hidden))
    for layer in range(size.num_layers):
        prefix = f"model.layers.{layer}"
        yield Part(f"{prefix}.input_layernorm.weight", hidden, "norm")
        yield from _attention(size, f"{prefix}.self_attn")
        yield Part(f"{prefix}.post_attention_layernorm.weight", hidden, "norm")
        yield from _experts(size, f"{prefix}.block_sparse_moe")
    yield Part("model.norm.weight", hidden, "norm")
    yield Part("lm_head.weight", (size.vocab_size, size.hidden))


def _attention(size: Size, prefix: str) -> Iterator[Part]:
    queries, keys = size.num_heads * size.head_dim, size.num_kv_heads * size.head_dim
    yield Part(f"{prefix}.q_proj.weight", (queries, size.hidden))
    yield Part(f"{prefix}.k_proj.weight", (keys, size.hidden))
    yield Part(f"{prefix}.v_proj.weight", (keys, size.hidden))
    yield Part(f"{prefix}.o_proj.weight", (size.hidden, queries), "output")


def _experts(size: Size, prefix: str) -> Iterator[Part]:
    yield Part(f"{prefix}.gate.weight", (size.num_experts, size.hidden), "gate")
    for expert in range(size.num_experts):
        inward, outward = (size.ffn, size.hidden), (size.hidden, size.ffn)
        yield Part(f"{prefix}.experts.{expert}.w1.weight", inward)
        yield Part(f"{prefix}.experts.{expert}.w2.weight", outward, "output")
        yield Part(f"{prefix}.experts.{expert}.w3.weight", inward)


def _write(folder: Path, size: Size, progress: Progress) -> None:
    shards = _shards(list(parts_of(size)))
    total_bytes = sum(part.num_bytes for shard in shards for part in shard)
    weight_map: dict[str, str] = {}
    done_bytes = 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for part in shard:
            tensors[part.name] = _draw(part, size.num_layers)
            done_bytes += part.num_bytes
            progress(done_bytes, total_bytes)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _dump(folder / "model.safetensors.index.json", index)
    _write_tokenizer(folder)
    _dump(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _dump(folder / "config.json", config_of(size))


def _shards(parts: list[Part]) -> list[list[Part]]:
    """Cut the parts into files of at most `SHARD_BYTES`."""
    shards: list[list[Part]] = [[]]
    for part in parts:
        if shards[-1] and sum(p.num_bytes for p in shards[-1]) + part.num_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(part)
    return shards


def _draw(part: Part, num_layers: int) -> Tensor:
    if part.role == "norm":
        return torch.ones(part.shape, dtype=torch.bfloat16)
    std = {"weight": STD, "output": STD / math.sqrt(2 * num_layers), "gate": GATE_STD}[part.role]
    name = hashlib.sha256(part.name.encode()).digest()
    generator = torch.Generator().manual_seed(SEED ^ int.from_bytes(name[:6], "little"))
    return torch.randn(part.shape, generator=generator).mul_(std).bfloat16()


def _write_tokenizer(folder: Path) -> None:
    shutil.copyfile(TOKENIZER, folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        **special,
        "pad_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    _dump(folder / "tokenizer_config.json", config)
    _dump(folder / "special_tokens_map.json", special)


def _dump(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
