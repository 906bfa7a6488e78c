import math
import pickle

import pytest

from model.errors import SamplingError
from model.sampling_params import MAX_BIASES, MAX_SEED, SamplingParams

WRONG: list[tuple[str, object]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", math.nan),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", math.nan),
    ("top_k", -1),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", -2.1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", math.nan),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", math.inf),
    ("logit_bias", ((-1, 0.0),)),
    ("logit_bias", ((3, 100.1),)),
    ("logit_bias", ((3, -100.1),)),
    ("logit_bias", ((3, math.nan),)),
    ("logit_bias", ((3, 1.0), (3, 2.0))),
    ("logit_bias", tuple((token_id, 0.0) for token_id in range(MAX_BIASES + 1))),
    ("seed", -1),
    ("seed", MAX_SEED + 1),
    ("max_tokens", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"^{field}: got .*, want ") as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]

    assert caught.value.field == field


@pytest.mark.parametrize("num_logprobs", [-1, 21])
def test_a_wrong_number_of_log_probabilities_is_named_as_in_the_api(num_logprobs: int) -> None:
    with pytest.raises(SamplingError, match="^logprobs: got"):
        SamplingParams(num_logprobs=num_logprobs)


def test_the_ends_of_all_ranges_are_allowed_and_survive_pickling() -> None:
    low = SamplingParams(
        temperature=0,
        min_p=0,
        presence_penalty=-2,
        frequency_penalty=-2,
        repetition_penalty=0.01,
        logit_bias=tuple((token_id, -100.0) for token_id in range(MAX_BIASES)),
    )
    high = SamplingParams(
        temperature=2,
        top_p=1,
        top_k=10**30,
        min_p=1,
        presence_penalty=2,
        frequency_penalty=2,
        repetition_penalty=100,
        logit_bias=((0, 100.0),),
        seed=MAX_SEED,
    )

    assert [pickle.loads(pickle.dumps(each)) for each in (low, high)] == [low, high]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(presence_penalty=0.1),
        SamplingParams(frequency_penalty=-0.1),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(logit_bias=((1, 0.0),)),
    ],
)
def test_biases_and_penalties_change_logits(params: SamplingParams) -> None:
    assert params.changes_logits


def test_what_only_narrows_a_draw_changes_no_logits() -> None:
    assert not SamplingParams(temperature=1, top_k=5, top_p=0.5, min_p=0.1).changes_logits
