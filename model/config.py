"""What a checkpoint says about its model, in one frozen object.

Reads Hugging Face's `config.json` (old and new spellings) and Mistral's `params.json`. Knows no
torch: data types are strings. Every value is checked here, before anything is allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")

# Upper bounds far above any published Mixtral: a file that asks for more is broken or hostile.
MAX_DIM = 65_536
MAX_HIDDEN_DIM = 262_144
MAX_LAYERS = 128
MAX_HEADS = 1_024
MAX_EXPERTS = 256
MAX_VOCAB_SIZE = 1_048_576
MAX_CONTEXT_TOKENS = 1_048_576

ARCHITECTURES = ("MixtralForCausalLM", "MistralForCausalLM")

# Our fields and the files' keys for them.
_HUGGING_FACE_KEYS = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "context_tokens": "max_position_embeddings",
}

_HUGGING_FACE_OTHER_KEYS = {
    "window_tokens": "sliding_window",
    "num_experts": "num_local_experts",
    "top_k": "num_experts_per_tok",
}

_PARAMS_KEYS = {
    "dim": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "num_kv_heads": "n_kv_heads",
    "hidden_dim": "hidden_dim",
    "vocab_size": "vocab_size",
    "norm_eps": "norm_eps",
}

_PARAMS_OTHER_KEYS = {
    "window_tokens": "sliding_window",
    "context_tokens": "max_seq_len",
    "num_experts": "moe.num_experts",
    "top_k": "moe.num_experts_per_tok",
}

# Each of these changes the maths or the weights, and the tensors' names would not show it.
_UNSUPPORTED_PARAMS = ("quantization", "lora", "yarn", "vision_encoder", "_sliding_window")


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
    is_moe = _architecture(config) == "MixtralForCausalLM"
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError("hidden_act", config["hidden_act"], "'silu'")
    _refuse_present(config, "quantization_config", "rope_scaling")
    values = {field: _require(config, key) for field, key in _HUGGING_FACE_KEYS.items()}
    values["rope_theta"] = _rope_theta(config)
    # A Mistral config.json that leaves the window out means 4096; one without a window says null.
    values["window_tokens"] = config.get("sliding_window", None if is_moe else 4096)
    values["tied_embeddings"] = _flag(config, "tie_word_embeddings")
    values["dtype"] = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    values["head_dim"] = _head_dim(config, "hidden_size", "num_attention_heads")
    if is_moe:
        values |= _experts(config, "num_local_experts")
    return _build(values, _HUGGING_FACE_KEYS | _HUGGING_FACE_OTHER_KEYS)


def from_params(params: Mapping[str, Any]) -> ModelConfig:
    """Read the content of Mistral's own `params.json`; it does not tell the data type.

    Raises:
        ConfigError: a key is missing or its value cannot be served; names the key.
    """
    if params.get("model_type", "transformer") != "transformer":
        raise ConfigError("model_type", params["model_type"], "'transformer'")
    _refuse_present(params, *_UNSUPPORTED_PARAMS)
    values = {field: _require(params, key) for field, key in _PARAMS_KEYS.items()}
    window = values["window_tokens"] = params.get("sliding_window")
    # Files without rope_theta come from before it varied: 10^4 with a sliding window, 10^6 without.
    values["rope_theta"] = _optional(params, "rope_theta", 1e6 if window is None else 1e4)
    values["context_tokens"] = _optional(params, "max_seq_len", 32_768)
    values["tied_embeddings"] = _flag(params, "tied_embeddings")
    values["head_dim"] = _head_dim(params, "dim", "n_heads")
    moe = params.get("moe")
    if moe is not None:
        if not isinstance(moe, Mapping):
            raise ConfigError("moe", moe, "an object")
        values |= _experts(moe, "num_experts")
    return _build(values, _PARAMS_KEYS | _PARAMS_OTHER_KEYS)


def _build(values: Mapping[str, Any], keys: Mapping[str, str]) -> ModelConfig:
    """Make the configuration; an error names the file's key, not our field."""
    try:
        return ModelConfig(**values)
    except ConfigError as error:
        raise ConfigError(keys.get(error.field, error.field), error.got, error.want) from error


def _check_int(field: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise ConfigError(field, value, f"a whole number from 1 to {high}")


def _check_positive(field: str, value: object, high: float) -> None:
    if type(value) not in (int, float) or not 0 < value <= high:  # type: ignore[operator]
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


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("architectures")
    for architecture in ARCHITECTURES:
        if found == [architecture]:
            return architecture
    raise ConfigError("architectures", found, f"one of {', '.join(ARCHITECTURES)}")


def _refuse_present(source: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if source.get(key) is not None:
            raise ConfigError(key, source[key], "null: mixray has no support for it")


def _head_dim(source: Mapping[str, Any], dim_key: str, heads_key: str) -> Any:
    if source.get("head_dim") is not None:
        return source["head_dim"]
    dim, num_heads = source[dim_key], source[heads_key]
    _check_int(dim_key, dim, MAX_DIM)
    _check_int(heads_key, num_heads, MAX_HEADS)
    if dim % num_heads:
        raise ConfigError(dim_key, dim, f"a multiple of the {num_heads} heads")
    return dim // num_heads


def _experts(source: Mapping[str, Any], count_key: str) -> dict[str, int]:
    """Read the mixture; zero experts is an error here, not a dense model."""
    num_experts = _require(source, count_key)
    _check_int(count_key, num_experts, MAX_EXPERTS)
    return {"num_experts": num_experts, "top_k": _require(source, "num_experts_per_tok")}


def _rope_theta(config: Mapping[str, Any]) -> Any:
    """transformers 5 moved `rope_theta` into `rope_parameters`; scaled variants are refused."""
    parameters = config.get("rope_parameters")
    if parameters is None:
        return _require(config, "rope_theta")
    if not isinstance(parameters, Mapping):
        raise ConfigError("rope_parameters", parameters, "an object")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ConfigError("rope_parameters.rope_type", kind, "'default'")
    return _require(parameters, "rope_theta")
