"""What a checkpoint says about its model, in one frozen object.

Reads Hugging Face's `config.json` (old and new spellings) and Mistral's `params.json`. Knows no
torch: data types are strings. Every value is checked here, before anything is allocated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")

# Upper bounds far above any published Mixtral: a file that asks for more is broken or hostile.
MAX_DIM = 65_536
MAX_HIDDEN_DIM = 262_144
MAX_LAYERS = 512
MAX_HEADS = 1_024
MAX_EXPERTS = 1_024
MAX_VOCAB_SIZE = 1_048_576
MAX_CONTEXT_TOKENS = 1_048_576

ARCHITECTURES = ("MixtralForCausalLM", "MistralForCausalLM")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a Mixtral (num_experts > 0) or of a dense Mistral (num_experts = 0)."""

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    context_tokens: int
    window_tokens: int | None = None
    num_experts: int = 0
    top_k: int = 0
    tied_embeddings: bool = False
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        _check_int("dim", self.dim, MAX_DIM)
        _check_int("num_layers", self.num_layers, MAX_LAYERS)
        _check_int("num_heads", self.num_heads, MAX_HEADS)
        _check_int("num_kv_heads", self.num_kv_heads, MAX_HEADS)
        _check_int("head_dim", self.head_dim, MAX_DIM)
        _check_int("hidden_dim", self.hidden_dim, MAX_HIDDEN_DIM)
        _check_int("vocab_size", self.vocab_size, MAX_VOCAB_SIZE)
        _check_int("context_tokens", self.context_tokens, MAX_CONTEXT_TOKENS)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "num_kv_heads", self.num_kv_heads, f"a divisor of num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError("head_dim", self.head_dim, "an even number, for rotary embedding")
        _check_positive("norm_eps", self.norm_eps, 1.0)
        _check_positive("rope_theta", self.rope_theta, 1e12)
        if self.window_tokens is not None:
            _check_int("window_tokens", self.window_tokens, MAX_CONTEXT_TOKENS)
        if self.num_experts:
            _check_int("num_experts", self.num_experts, MAX_EXPERTS)
            _check_int("top_k", self.top_k, self.num_experts)
        if self.dtype not in DTYPES:
            raise ConfigError("dtype", self.dtype, f"one of {', '.join(DTYPES)}")

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward layers are mixtures of experts."""
        return self.num_experts > 0


def from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
    """Read the content of a `config.json`, as old and new versions of transformers write it.

    Raises:
        ConfigError: an architecture, activation or value that cannot be served; names the key.
    """
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        raise ConfigError("architectures", architecture, f"one of {', '.join(ARCHITECTURES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError("hidden_act", config["hidden_act"], "'silu'")
    if config.get("quantization_config") is not None:
        raise ConfigError("quantization_config", "present", "unquantised weights")
    is_moe = architecture == "MixtralForCausalLM"
    num_heads = _require(config, "num_attention_heads")
    dim = _require(config, "hidden_size")
    return ModelConfig(
        dim=dim,
        num_layers=_require(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_optional(config, "num_key_value_heads", num_heads),
        head_dim=_optional(config, "head_dim", None) or _head_dim(dim, num_heads),
        hidden_dim=_require(config, "intermediate_size"),
        vocab_size=_require(config, "vocab_size"),
        norm_eps=_optional(config, "rms_norm_eps", 1e-5),
        rope_theta=_rope_theta(config),
        context_tokens=_optional(config, "max_position_embeddings", 32_768),
        window_tokens=config.get("sliding_window"),
        num_experts=_moe_count(config, "num_local_experts", "num_experts") if is_moe else 0,
        top_k=_moe_count(config, "num_experts_per_tok") if is_moe else 0,
        tied_embeddings=_flag(config, "tie_word_embeddings"),
        dtype=_dtype(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
    )


def from_params(params: Mapping[str, Any]) -> ModelConfig:
    """Read the content of Mistral's own `params.json`.

    Raises:
        ConfigError: a key is missing or its value cannot be served; names the key.
    """
    num_heads = _require(params, "n_heads")
    dim = _require(params, "dim")
    moe = params.get("moe")
    if moe is not None and not isinstance(moe, Mapping):
        raise ConfigError("moe", moe, "an object")
    return ModelConfig(
        dim=dim,
        num_layers=_require(params, "n_layers"),
        num_heads=num_heads,
        num_kv_heads=_optional(params, "n_kv_heads", num_heads),
        head_dim=_optional(params, "head_dim", None) or _head_dim(dim, num_heads),
        hidden_dim=_require(params, "hidden_dim"),
        vocab_size=_require(params, "vocab_size"),
        norm_eps=_optional(params, "norm_eps", 1e-5),
        rope_theta=_optional(params, "rope_theta", 1e6 if moe is not None else 1e4),
        context_tokens=_optional(params, "max_seq_len", 32_768),
        window_tokens=params.get("sliding_window"),
        num_experts=_moe_count(moe, "num_experts") if moe is not None else 0,
        top_k=_moe_count(moe, "num_experts_per_tok") if moe is not None else 0,
    )


def _check_int(field: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise ConfigError(field, value, f"a whole number from 1 to {high}")


def _check_positive(field: str, value: object, high: float) -> None:
    if type(value) not in (int, float) or not 0 < float(value) <= high:  # type: ignore[arg-type]
        raise ConfigError(field, value, f"a number above 0, up to {high:g}")


def _require(source: Mapping[str, Any], key: str) -> Any:
    if source.get(key) is None:
        raise ConfigError(key, None, "a value")
    return source[key]


def _optional(source: Mapping[str, Any], key: str, default: Any) -> Any:
    value = source.get(key)
    return default if value is None else value


def _flag(source: Mapping[str, Any], key: str) -> bool:
    value = _optional(source, key, False)
    if type(value) is not bool:
        raise ConfigError(key, value, "true or false")
    return value


def _head_dim(dim: Any, num_heads: Any) -> int:
    _check_int("hidden size", dim, MAX_DIM)
    _check_int("number of heads", num_heads, MAX_HEADS)
    if dim % num_heads:
        raise ConfigError("hidden size", dim, f"a multiple of the {num_heads} heads")
    return int(dim // num_heads)


def _moe_count(source: Mapping[str, Any], *keys: str) -> int:
    """The first of `keys` that is present; zero experts is an error, not a dense model."""
    key = next((key for key in keys if source.get(key) is not None), keys[0])
    value = _require(source, key)
    _check_int(key, value, MAX_EXPERTS)
    return int(value)


def _rope_theta(config: Mapping[str, Any]) -> Any:
    """transformers 5 moved `rope_theta` into `rope_parameters`; scaled variants are refused."""
    parameters = config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ConfigError("rope_parameters", parameters, "an object")
    if config.get("rope_scaling") is not None:
        raise ConfigError("rope_scaling", config["rope_scaling"], "null")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ConfigError("rope_parameters.rope_type", kind, "'default'")
    theta = parameters.get("rope_theta", _optional(config, "rope_theta", 10_000.0))
    if isinstance(theta, float) and math.isnan(theta):
        raise ConfigError("rope_theta", theta, "a number above 0")
    return theta


def _dtype(name: object) -> Dtype:
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    raise ConfigError("dtype", name, f"one of {', '.join(DTYPES)}")
