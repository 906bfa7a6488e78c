"""Workloads: fixed by seed, within their bounds."""

import random

import pytest

from loadtest.workloads import WORDS, WORKLOADS, Lengths


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_stay_within_their_bounds_and_vary_with_the_spread(name: str) -> None:
    workload, rng = WORKLOADS[name], random.Random(0)

    requests = [workload.request(rng) for _ in range(200)]

    for lengths, drawn in (
        (workload.prompt_words, [len(r["messages"][0]["content"].split()) for r in requests]),
        (workload.output_tokens, [r["max_tokens"] for r in requests]),
    ):
        assert lengths.low <= min(drawn) <= max(drawn) <= lengths.high
        assert (len(set(drawn)) > 1) == (lengths.spread > 0)


def test_the_same_seed_gives_the_same_requests_and_another_gives_others() -> None:
    workload = WORKLOADS["chat"]

    def draw(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [workload.request(rng) for _ in range(5)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_max_tokens_cuts_longer_answers_only() -> None:
    workload = WORKLOADS["fixed"]

    assert workload.request(random.Random(0), 10)["max_tokens"] == 10
    assert workload.request(random.Random(0), 100)["max_tokens"] == 32


def test_answers_end_by_length_so_that_every_server_does_the_same_work() -> None:
    request = WORKLOADS["short"].request(random.Random(0))

    assert request["ignore_eos"] is True
    assert request["temperature"] == 0.0


def test_lengths_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="1 <= 5 <= 4 <= 9"):
        Lengths(median=4, spread=0.0, low=5, high=9)


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS) > 100
