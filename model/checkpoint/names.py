"""Tensor names as data: ours, Hugging Face's and those of Mistral's consolidated files.

Ours are Mistral's own, with experts directly under their layer. Each table gives, for one of our
names, every form in which a layout is known to store it; all others are refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from model.checkpoint.parts import Part, Shape, Source, stored_shape
from model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Form:
    """A stored name, with places for layer and expert, and the part of it that is ours."""

    stored: str
    part: Part = Part.WHOLE


Forms = Mapping[str, tuple[Form, ...]]

_ATTENTION = "layers.{layer}.attention."
_DENSE = "layers.{layer}.feed_forward."
_EXPERT = "layers.{layer}.experts.{expert}."

_HF_LAYER = "model.layers.{layer}."
_HF_ATTENTION = "model.layers.{layer}.self_attn."
_HF_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
_HF_STACK = "model.layers.{layer}.mlp.experts."

# The stacked forms are what transformers 5 writes with save_original_format=False.
HUGGING_FACE: Forms = {
    "tok_embeddings.weight": (Form("model.embed_tokens.weight"),),
    "norm.weight": (Form("model.norm.weight"),),
    "output.weight": (Form("lm_head.weight"),),
    _ATTENTION + "wq.weight": (Form(_HF_ATTENTION + "q_proj.weight"),),
    _ATTENTION + "wk.weight": (Form(_HF_ATTENTION + "k_proj.weight"),),
    _ATTENTION + "wv.weight": (Form(_HF_ATTENTION + "v_proj.weight"),),
    _ATTENTION + "wo.weight": (Form(_HF_ATTENTION + "o_proj.weight"),),
    "layers.{layer}.attention_norm.weight": (Form(_HF_LAYER + "input_layernorm.weight"),),
    "layers.{layer}.ffn_norm.weight": (Form(_HF_LAYER + "post_attention_layernorm.weight"),),
    _DENSE + "w1.weight": (Form(_HF_LAYER + "mlp.gate_proj.weight"),),
    _DENSE + "w2.weight": (Form(_HF_LAYER + "mlp.down_proj.weight"),),
    _DENSE + "w3.weight": (Form(_HF_LAYER + "mlp.up_proj.weight"),),
    "layers.{layer}.gate.weight": (
        Form(_HF_LAYER + "block_sparse_moe.gate.weight"),
        Form(_HF_LAYER + "mlp.gate.weight"),
    ),
    _EXPERT + "w1.weight": (
        Form(_HF_EXPERT + "w1.weight"),
        Form(_HF_STACK + "gate_up_proj", Part.GATE_OF_STACK),
    ),
    _EXPERT + "w2.weight": (
        Form(_HF_EXPERT + "w2.weight"),
        Form(_HF_STACK + "down_proj", Part.OF_STACK),
    ),
    _EXPERT + "w3.weight": (
        Form(_HF_EXPERT + "w3.weight"),
        Form(_HF_STACK + "gate_up_proj", Part.UP_OF_STACK),
    ),
}

_OLD_MOE = "layers.{layer}.block_sparse_moe."
_MOE_EXPERT = "layers.{layer}.feed_forward.experts.{expert}."

# The block_sparse_moe forms are those of the first Mixtral release.
CONSOLIDATED: Forms = {
    "tok_embeddings.weight": (Form("tok_embeddings.weight"),),
    "norm.weight": (Form("norm.weight"),),
    "output.weight": (Form("output.weight"),),
    _ATTENTION + "wq.weight": (Form(_ATTENTION + "wq.weight", Part.INTERLEAVED),),
    _ATTENTION + "wk.weight": (Form(_ATTENTION + "wk.weight", Part.INTERLEAVED),),
    _ATTENTION + "wv.weight": (Form(_ATTENTION + "wv.weight"),),
    _ATTENTION + "wo.weight": (Form(_ATTENTION + "wo.weight"),),
    "layers.{layer}.attention_norm.weight": (Form("layers.{layer}.attention_norm.weight"),),
    "layers.{layer}.ffn_norm.weight": (Form("layers.{layer}.ffn_norm.weight"),),
    _DENSE + "w1.weight": (Form(_DENSE + "w1.weight"),),
    _DENSE + "w2.weight": (Form(_DENSE + "w2.weight"),),
    _DENSE + "w3.weight": (Form(_DENSE + "w3.weight"),),
    "layers.{layer}.gate.weight": (
        Form("layers.{layer}.feed_forward.gate.weight"),
        Form(_OLD_MOE + "gate.weight"),
    ),
    _EXPERT + "w1.weight": (
        Form(_MOE_EXPERT + "w1.weight"),
        Form(_OLD_MOE + "w1", Part.OF_ROWS),
    ),
    _EXPERT + "w2.weight": (
        Form(_MOE_EXPERT + "w2.weight"),
        Form(_OLD_MOE + "w2", Part.OF_ROWS_TRANSPOSED),
    ),
    _EXPERT + "w3.weight": (
        Form(_MOE_EXPERT + "w3.weight"),
        Form(_OLD_MOE + "w3", Part.OF_ROWS),
    ),
}

# Buffers that old versions of transformers saved; they follow from rope_theta.
HUGGING_FACE_IGNORED = (_HF_ATTENTION + "rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One of our tensors: its name with places for numbers, the numbers, its shape."""

    template: str
    shape: Shape
    layer: int = 0
    expert: int = 0

    def fill(self, template: str) -> str:
        return template.format(layer=self.layer, expert=self.expert)

    @property
    def name(self) -> str:
        return self.fill(self.template)


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Give our name and shape of every tensor that a model of this configuration has."""
    return {wanted.name: wanted.shape for wanted in _wanted(config)}


def sources(config: ModelConfig, forms: Forms) -> dict[str, tuple[Source, ...]]:
    """Give, for each of our names, where a layout may store it, the usual place first."""
    return {
        wanted.name: tuple(
            Source(
                stored=wanted.fill(form.stored),
                shape=stored_shape(form.part, wanted.shape, config.num_experts),
                part=form.part,
                expert=wanted.expert,
            )
            for form in forms[wanted.template]
        )
        for wanted in _wanted(config)
    }


def ignored_names(config: ModelConfig, templates: Iterable[str]) -> frozenset[str]:
    """Give the stored names, of every layer, that are known and not needed."""
    layers = range(config.num_layers)
    return frozenset(template.format(layer=layer) for template in templates for layer in layers)


def expert_names(config: ModelConfig, expert_ids: Iterable[int]) -> list[str]:
    """Give our names of these experts' tensors, in every layer."""
    ids = frozenset(expert_ids)
    return [each.name for each in _wanted(config) if _is_expert(each) and each.expert in ids]


def router_names(config: ModelConfig) -> list[str]:
    """Give our names of everything but the experts."""
    return [each.name for each in _wanted(config) if not _is_expert(each)]


def _is_expert(wanted: _Wanted) -> bool:
    return wanted.template.startswith(_EXPERT)


def _wanted(config: ModelConfig) -> Iterator[_Wanted]:
    yield _Wanted("tok_embeddings.weight", (config.vocab_size, config.dim))
    yield _Wanted("norm.weight", (config.dim,))
    if not config.tied_embeddings:
        yield _Wanted("output.weight", (config.vocab_size, config.dim))
    for layer in range(config.num_layers):
        yield from _wanted_attention(config, layer)
        yield from _wanted_feed_forward(config, layer)


def _wanted_attention(config: ModelConfig, layer: int) -> Iterator[_Wanted]:
    query_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    yield _Wanted(_ATTENTION + "wq.weight", (query_rows, config.dim), layer)
    yield _Wanted(_ATTENTION + "wk.weight", (kv_rows, config.dim), layer)
    yield _Wanted(_ATTENTION + "wv.weight", (kv_rows, config.dim), layer)
    yield _Wanted(_ATTENTION + "wo.weight", (config.dim, query_rows), layer)
    yield _Wanted("layers.{layer}.attention_norm.weight", (config.dim,), layer)
    yield _Wanted("layers.{layer}.ffn_norm.weight", (config.dim,), layer)


def _wanted_feed_forward(config: ModelConfig, layer: int) -> Iterator[_Wanted]:
    up, down = (config.hidden_dim, config.dim), (config.dim, config.hidden_dim)
    shapes = {"w1.weight": up, "w2.weight": down, "w3.weight": up}
    if not config.is_moe:
        for name, shape in shapes.items():
            yield _Wanted(_DENSE + name, shape, layer)
        return
    yield _Wanted("layers.{layer}.gate.weight", (config.num_experts, config.dim), layer)
    for expert in range(config.num_experts):
        for name, shape in shapes.items():
            yield _Wanted(_EXPERT + name, shape, layer, expert)
