import dataclasses
from typing import Any

import pytest

from model.config import MAX_EXPERTS, MAX_LAYERS, ModelConfig, from_hugging_face, from_params
from model.errors import ConfigError
from tests.checkpoints import TINY_DENSE, TINY_MOE, hugging_face_config, params

MOE = hugging_face_config(TINY_MOE)
DENSE = hugging_face_config(TINY_DENSE)
NAN, INFINITY = float("nan"), float("inf")


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


@pytest.mark.parametrize("config", [TINY_MOE, TINY_DENSE], ids=["moe", "dense"])
def test_both_layouts_describe_the_same_model(config: ModelConfig) -> None:
    assert from_hugging_face(hugging_face_config(config)) == config
    assert dataclasses.replace(from_params(params(config)), dtype="float32") == config


def test_the_published_mixtral_8x7b_config_is_read() -> None:
    published = {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    }

    config = from_hugging_face(published)

    assert config == ModelConfig(
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        hidden_dim=14336,
        vocab_size=32000,
        norm_eps=1e-5,
        rope_theta=1e6,
        context_tokens=32768,
        num_experts=8,
        top_k=2,
        dtype="bfloat16",
    )


def test_old_spellings_mean_the_same_as_new_ones() -> None:
    old = without(MOE, "rope_parameters", "dtype")
    old |= {"rope_theta": TINY_MOE.rope_theta, "torch_dtype": "float32"}

    assert from_hugging_face(old) == from_hugging_face(MOE)


def test_head_dim_follows_from_the_hidden_size_unless_given() -> None:
    assert from_hugging_face(MOE | {"head_dim": None}).head_dim == 16
    assert from_hugging_face(MOE | {"head_dim": 32}).head_dim == 32
    assert from_params(without(params(TINY_MOE), "head_dim")).head_dim == 16


def test_a_mistral_config_that_leaves_the_window_out_means_4096() -> None:
    assert from_hugging_face(without(DENSE, "sliding_window")).window_tokens == 4096
    assert from_hugging_face(DENSE | {"sliding_window": None}).window_tokens is None
    assert from_hugging_face(without(MOE, "sliding_window")).window_tokens is None


def test_params_without_rope_theta_take_it_from_the_presence_of_a_window() -> None:
    with_window = without(params(TINY_DENSE), "rope_theta")
    no_window = without(with_window, "sliding_window")

    assert from_params(with_window).rope_theta == 1e4
    assert from_params(no_window).rope_theta == 1e6


HUGGING_FACE_REFUSALS: list[tuple[str, object]] = [
    ("architectures", ["LlamaForCausalLM"]),
    ("architectures", ["os.system"]),
    ("architectures", "MixtralForCausalLM"),
    ("architectures", {"0": "MixtralForCausalLM"}),
    ("architectures", []),
    ("architectures", None),
    ("hidden_act", "os.system"),
    ("hidden_act", ["silu"]),
    ("quantization_config", {"quant_method": "awq"}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("num_local_experts", 0),
    ("num_local_experts", 10**9),
    ("num_local_experts", MAX_EXPERTS + 1),
    ("num_local_experts", -1),
    ("num_local_experts", 8.0),
    ("num_local_experts", "8"),
    ("num_local_experts", True),
    ("num_local_experts", None),
    ("num_experts_per_tok", 0),
    ("num_experts_per_tok", 9),
    ("num_experts_per_tok", [2]),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", 10**6),
    ("num_hidden_layers", MAX_LAYERS + 1),
    ("num_hidden_layers", 10**400),
    ("hidden_size", 0),
    ("hidden_size", -64),
    ("num_attention_heads", 0),
    ("num_attention_heads", "4"),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 8),
    ("num_key_value_heads", None),
    ("head_dim", 0),
    ("head_dim", 15),
    ("intermediate_size", 0),
    ("vocab_size", 0),
    ("vocab_size", 10**12),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", NAN),
    ("rms_norm_eps", "1e-5"),
    ("max_position_embeddings", 0),
    ("sliding_window", -1),
    ("sliding_window", 0),
    ("sliding_window", "4096"),
    ("tie_word_embeddings", 1),
    ("dtype", "int8"),
    ("dtype", ["float32"]),
    ("rope_parameters", [1e6]),
]


@pytest.mark.parametrize(("key", "value"), HUGGING_FACE_REFUSALS)
def test_a_bad_value_in_config_json_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: ") as caught:
        from_hugging_face(MOE | {key: value})

    assert caught.value.field == key
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("theta", [0, -1.0, NAN, INFINITY, 10**400, "1e6", True, None])
def test_a_bad_rope_theta_is_refused_in_either_spelling(theta: object) -> None:
    old = without(MOE, "rope_parameters") | {"rope_theta": theta}

    with pytest.raises(ConfigError, match="^rope_theta: "):
        from_hugging_face(MOE | {"rope_parameters": {"rope_theta": theta}})
    with pytest.raises(ConfigError, match="^rope_theta: "):
        from_hugging_face(old)


def test_scaled_rope_parameters_are_refused() -> None:
    scaled = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}

    with pytest.raises(ConfigError, match="rope_parameters.rope_type: got 'yarn'"):
        from_hugging_face(MOE | {"rope_parameters": scaled})


def test_heads_that_do_not_divide_the_hidden_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="^hidden_size: got 4097, want a multiple of the 32"):
        from_hugging_face(MOE | {"hidden_size": 4097, "num_attention_heads": 32, "head_dim": None})


PARAMS_REFUSALS: list[tuple[str, object]] = [
    ("dim", 0),
    ("n_layers", 10**6),
    ("n_heads", 2.0),
    ("n_kv_heads", 3),
    ("hidden_dim", None),
    ("norm_eps", 0),
    ("vocab_size", -1),
    ("rope_theta", 0),
    ("sliding_window", [4096, None]),
    ("max_seq_len", 0),
    ("moe", 8),
    ("moe", []),
    ("tied_embeddings", "yes"),
    ("model_type", "mamba"),
    ("quantization", {"qformat_weight": "fp8_e4m3"}),
    ("lora", {"rank": 8}),
    ("yarn", {"factor": 4}),
    ("vision_encoder", {"hidden_size": 1024}),
    ("_sliding_window", [None, 4096]),
]


@pytest.mark.parametrize(("key", "value"), PARAMS_REFUSALS)
def test_a_bad_value_in_params_json_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        from_params(params(TINY_MOE) | {key: value})


@pytest.mark.parametrize(
    ("moe", "key"),
    [
        ({}, "num_experts"),
        ({"num_experts": 0, "num_experts_per_tok": 2}, "num_experts"),
        ({"num_experts": 8}, "num_experts_per_tok"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "moe.num_experts_per_tok"),
    ],
)
def test_a_bad_mixture_in_params_json_is_refused_by_its_key(moe: object, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        from_params(params(TINY_MOE) | {"moe": moe})
