"""Rows with all kinds of options in one batch: against a slow reference, and alone."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.sampling import Sample, SampleRow, sample, uniform
from model.sampling_params import SamplingParams

VOCAB_SIZE = 600


def random_params(rng: random.Random) -> SamplingParams:
    """Every option is off half of the time."""

    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.5 else off

    biased = rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 1, 40]))
    return SamplingParams(
        temperature=maybe(rng.choice([0.4, 1.0, 1.7]), 0.0),
        top_p=maybe(rng.uniform(0.05, 1.0), 1.0),
        top_k=int(maybe(rng.choice([1, 3, 50, 400, 10_000]), 0)),
        min_p=maybe(rng.uniform(0.0, 0.3), 0.0),
        presence_penalty=maybe(rng.uniform(-2.0, 2.0), 0.0),
        frequency_penalty=maybe(rng.uniform(-2.0, 2.0), 0.0),
        repetition_penalty=maybe(rng.choice([0.7, 1.3]), 1.0),
        logit_bias=tuple((token_id, rng.uniform(-100.0, 100.0)) for token_id in biased),
        seed=rng.randrange(1_000),
        num_logprobs=rng.choice([None, None, 0, 4, 20]),
    )


def random_rows(seed: int, num: int) -> tuple[Tensor, list[SampleRow]]:
    rng = random.Random(seed)
    logits_BV = torch.randn(num, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2
    # Real models often compute in bfloat16, so equal logits are common.
    logits_BV[::2] = logits_BV[::2].bfloat16().float()
    rows = [
        SampleRow(
            random_params(rng),
            rng.randrange(500),
            rng.choices(range(VOCAB_SIZE), k=rng.randrange(1, 30)),
            rng.choices(range(20), k=rng.randrange(30)),
        )
        for _ in range(num)
    ]
    return logits_BV, rows


def slow_logits(logits: list[float], row: SampleRow) -> list[float]:
    params = row.params
    biases = dict(params.logit_bias)
    seen = {*row.prompt_ids, *row.output_ids}
    counts = Counter(row.output_ids)
    changed = []
    for token_id, logit in enumerate(logits):
        logit += biases.get(token_id, 0.0)
        if token_id in seen and logit > 0:
            logit /= params.repetition_penalty
        elif token_id in seen:
            logit *= params.repetition_penalty
        if counts[token_id]:
            logit -= params.frequency_penalty * counts[token_id]
            logit -= params.presence_penalty
        changed.append(logit)
    return changed


def slow_head(logits: list[float], params: SamplingParams) -> list[tuple[float, int]]:
    """Weight and id of each token that may be drawn, likeliest first."""
    peak = max(logits)
    weighed = [
        (math.exp((logit - peak) / params.temperature), -token_id)
        for token_id, logit in enumerate(logits)
    ]
    head = sorted(weighed, reverse=True)[: params.top_k or None]
    goal = params.top_p * math.fsum(weight for weight, _ in head)
    kept: list[tuple[float, int]] = []
    for weight, negative_id in head:
        is_enough = math.fsum(weight for weight, _ in kept) >= goal
        if kept and (is_enough or weight < params.min_p * head[0][0]):
            break
        kept.append((weight, -negative_id))
    return kept


def slow_choice(logits: list[float], row: SampleRow) -> int:
    logits = slow_logits(logits, row)
    if row.params.temperature == 0:
        return logits.index(max(logits))
    head = slow_head(logits, row.params)
    target = uniform(row.params.seed, row.position) * math.fsum(weight for weight, _ in head)
    passed = 0.0
    for weight, token_id in head:
        passed += weight
        if passed > target:
            return token_id
    raise AssertionError(head)


def ids_of(samples: list[Sample]) -> list[int]:
    return [each.token_id for each in samples]


def row_of(prompt_ids: list[int], output_ids: list[int], **params: object) -> SampleRow:
    return SampleRow(SamplingParams(**params), 0, prompt_ids, output_ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_chosen_as_the_slow_reference_does(seed: int) -> None:
    logits_BV, rows = random_rows(seed, num=60)

    chosen = sample(logits_BV, rows)

    expected = [
        slow_choice(logits, row) for logits, row in zip(logits_BV.tolist(), rows, strict=True)
    ]
    assert ids_of(chosen) == expected


@pytest.mark.parametrize("seed", [10, 11])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(seed: int) -> None:
    logits_BV, rows = random_rows(seed, num=50)
    order = random.Random(seed).sample(range(50), 17)

    together = sample(logits_BV, rows)

    alone = [sample(logits_BV[[index]], [row])[0] for index, row in enumerate(rows)]
    assert together == alone
    assert sample(logits_BV[order], [rows[index] for index in order]) == [
        alone[index] for index in order
    ]


def test_logits_are_left_as_they_are() -> None:
    logits_BV, rows = random_rows(20, num=8)
    before_BV = logits_BV.clone()

    sample(logits_BV, rows)
    sample(logits_BV.double(), rows)

    assert torch.equal(logits_BV, before_BV)


def test_greedy_choice_follows_biases_and_penalties() -> None:
    logits_BV = torch.tensor([[3.0, 2.0, 1.0, -1.0]]).expand(7, -1)
    rows = [
        row_of([0], [0]),
        row_of([], [], logit_bias=((0, -100.0),)),
        row_of([0], [], repetition_penalty=2.0),
        row_of([0], [1, 1], frequency_penalty=2.0),
        row_of([0], [0, 0, 1], frequency_penalty=0.75),
        row_of([1], [0, 0, 0], presence_penalty=0.9),
        row_of([1], [0, 0, 0], presence_penalty=1.1),
    ]

    assert ids_of(sample(logits_BV, rows)) == [0, 1, 1, 0, 0, 0, 1]


def test_penalties_of_counts_know_the_answer_only_and_repetition_the_prompt_too() -> None:
    logits_BV = torch.tensor([[3.0, 2.0]]).expand(3, -1)
    rows = [
        row_of([0] * 9, [], frequency_penalty=2.0, presence_penalty=2.0),
        row_of([0], [], repetition_penalty=2.0),
        row_of([], [0], repetition_penalty=2.0),
    ]

    assert ids_of(sample(logits_BV, rows)) == [0, 1, 1]


def test_the_bias_comes_before_the_repetition_penalty_and_that_before_the_others() -> None:
    # Token 0: (1 + 3) / 2 - 0.5 = 1.5; in another order 1 / 2 + 3 or (1 + 3 - 0.5) / 2 = 1.75.
    row = row_of([], [0], logit_bias=((0, 3.0),), repetition_penalty=2.0, frequency_penalty=0.5)

    assert ids_of(sample(torch.tensor([[1.0, 1.6], [1.0, 1.4]]), [row, row])) == [1, 0]


def test_a_banned_token_is_not_drawn_and_one_that_is_pushed_always_is() -> None:
    logits_BV = torch.tensor([[5.0, 1.0, 1.0]]).expand(200, -1)
    banned = row_of([], [], temperature=1.0, logit_bias=((0, -100.0),))
    pushed = row_of([], [], temperature=1.0, logit_bias=((2, 100.0),))

    for row, expected in [(banned, {1, 2}), (pushed, {2})]:
        rows = [replace(row, position=position) for position in range(200)]
        assert set(ids_of(sample(logits_BV, rows))) == expected


def test_log_probabilities_know_nothing_of_biases_and_penalties() -> None:
    row = row_of(
        [0], [1], num_logprobs=2, logit_bias=((2, 50.0),), repetition_penalty=2.0, temperature=0.7
    )

    [chosen] = sample(torch.tensor([[0.5, 0.3, 0.2]]).log(), [row])

    assert chosen.token_id == 2
    assert chosen.logprob == pytest.approx(math.log(0.2))
    assert [token_id for token_id, _ in chosen.top_logprobs] == [0, 1]
    assert [value for _, value in chosen.top_logprobs] == pytest.approx(
        [math.log(0.5), math.log(0.3)]
    )
