"""Driving forward passes: turns, order, and what becomes of the others when one fails."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from routing.errors import ExpertUnavailable
from routing.experts import ExpertCall, Forward, LocalExperts, drive
from routing.gating import Routes
from tests.routing.hosts import times_expert


@dataclass
class RecordingCall:
    """A call that answers its tokens plus one, and notes when."""

    call: ExpertCall
    log: list[str]

    def result(self) -> Tensor:
        self.log.append(f"result {self.call.layer}")
        return self.call.x_TD + 1

    def abandon(self) -> None:
        self.log.append(f"abandon {self.call.layer}")


@dataclass
class RecordingExperts:
    """Notes every call; `layer` stands for the micro-batch and its turn, as 10 m + n."""

    fails_at: int | None = None
    log: list[str] = field(default_factory=list)

    def start(self, call: ExpertCall) -> RecordingCall:
        if call.layer == self.fails_at:
            raise ExpertUnavailable("on purpose")
        self.log.append(f"start {call.layer}")
        return RecordingCall(call, self.log)


def forward(micro_batch: int, num_layers: int) -> Forward[float]:
    """Send a number through some layers, each of which adds one."""
    x_TD = torch.full((1, 1), float(micro_batch))
    routes = Routes(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    for layer in range(num_layers):
        x_TD = yield ExpertCall(10 * micro_batch + layer, x_TD, routes)
    return float(x_TD)


def test_micro_batches_take_turns() -> None:
    experts = RecordingExperts()

    drive([forward(1, 2), forward(2, 2)], experts)

    assert experts.log == [
        "start 10",
        "start 20",
        "result 10",
        "start 11",
        "result 20",
        "start 21",
        "result 11",
        "result 21",
    ]


def test_outputs_come_in_the_order_of_the_forward_passes_whichever_ends_first() -> None:
    outputs = drive([forward(1, 5), forward(2, 0), forward(3, 2)], RecordingExperts())

    assert outputs == [6.0, 2.0, 5.0]


def test_no_forward_pass_gives_no_output() -> None:
    assert drive([], RecordingExperts()) == []


def test_the_calls_under_way_are_abandoned_when_one_forward_pass_fails() -> None:
    experts = RecordingExperts(fails_at=11)

    with pytest.raises(ExpertUnavailable):
        drive([forward(1, 2), forward(2, 2), forward(3, 2)], experts)

    assert experts.log[-2:] == ["abandon 20", "abandon 30"]


def test_local_experts_answer_with_the_weighted_sum_of_the_chosen() -> None:
    routes = Routes(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    x_TD = torch.tensor([[1.0], [10.0]])

    output_TD = LocalExperts(times_expert).start(ExpertCall(0, x_TD, routes)).result()

    assert output_TD.tolist() == [[0.25 * 1 + 0.75 * 3], [0.5 * 20 + 0.5 * 10]]
