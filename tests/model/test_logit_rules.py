import pytest
import torch
from torch import Tensor

from model.logit_rules import add_biases, penalise_counts, penalise_repetition


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_bias_is_added_to_its_tokens_of_its_row_alone() -> None:
    logits_RV = logits([0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0])

    add_biases(logits_RV, [((2, 0.5), (0, -100.0)), (), ((1, 100.0),)])

    assert logits_RV.tolist() == [[-100.0, 1.0, 2.5], [3.0, 4.0, 5.0], [6.0, 107.0, 8.0]]


def test_repetition_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    logits_RV = logits([3.0, -3.0, 0.0, 1.0], [3.0, -3.0, 0.0, 1.0])

    penalise_repetition(logits_RV, [[0, 1, 2, 1, 0], [3]], [2.0, 0.5])

    assert logits_RV.tolist() == [[1.5, -6.0, 0.0, 1.0], [3.0, -3.0, 0.0, 2.0]]


def test_frequency_counts_every_time_and_presence_once() -> None:
    logits_RV = logits([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])

    penalise_counts(logits_RV, [[0, 2, 0, 0], [1]], [0.5, -1.0], [0.25, 2.0])

    assert logits_RV.tolist() == [[-0.75, 1.0, 0.25], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("ids", [[], [[], []]])
def test_nothing_generated_is_nothing_penalised(ids: list[list[int]]) -> None:
    logits_RV = logits([1.0, 2.0], [3.0, 4.0])

    penalise_counts(logits_RV, ids, [2.0, 2.0], [2.0, 2.0])
    penalise_repetition(logits_RV, ids, [2.0, 2.0])
    add_biases(logits_RV, [(), ()])

    assert logits_RV.tolist() == [[1.0, 2.0], [3.0, 4.0]]
