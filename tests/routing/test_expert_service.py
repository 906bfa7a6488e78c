"""The service: what merges, what is refused, and who suffers when a computation fails."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from routing.expert_service import ExpertService
from routing.link import Reply
from routing.messages import (
    BAD_REQUEST,
    EXPIRED,
    INTERNAL,
    NOT_OWNER,
    ComputeReply,
    ComputeRequest,
    Refusal,
)
from routing.tensors import from_bytes, to_bytes
from tests.faults import FakeClock
from tests.routing.hosts import DIM, service_of, times_expert

Slices = Mapping[int, tuple[int, int]]


class Recorder:
    """Computes as `times_expert`, and notes the layer and slices of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[int, tuple[int, int]]]] = []

    def __call__(self, layer: int, x_RD: Tensor, slices: Slices) -> Tensor:
        self.calls.append((layer, dict(slices)))
        return times_expert(layer, x_RD, slices)


class Router:
    """Submits rows and keeps the answers. Row r of request s is filled with 10 s + r."""

    def __init__(self, service: ExpertService) -> None:
        self.answers: list[Reply] = []
        self.outputs: dict[int, Tensor] = {}
        self._service = service

    def ask(
        self,
        seq: int,
        *rows: tuple[int, int],
        layer: int = 0,
        dim: int = DIM,
        dtype: str = "float32",
        deadline_ms: int = 1_000,
    ) -> None:
        num_rows = sum(number for _, number in rows)
        x_RD = (torch.arange(num_rows) + 10.0 * seq).unsqueeze(1).repeat(1, dim)
        self.send(ComputeRequest(seq, layer, dtype, dim, rows, deadline_ms), x_RD)

    def send(self, request: ComputeRequest, x_RD: Tensor) -> None:
        self._service.submit(request, to_bytes(x_RD), self._take)

    def _take(self, reply: Reply, payload: memoryview | None) -> None:
        self.answers.append(reply)
        if payload is not None and isinstance(reply, ComputeReply):
            self.outputs[reply.seq] = from_bytes(payload, reply.dtype, reply.dim)

    def first_column(self, seq: int) -> list[float]:
        """The answer to a request, one number per row."""
        return [float(value) for value in self.outputs[seq][:, 0]]

    def refusals(self) -> list[tuple[int, str]]:
        """Numbers of refused requests, and why."""
        return [(a.seq, a.code) for a in self.answers if isinstance(a, Refusal)]


def test_requests_of_one_layer_from_two_routers_are_computed_in_one_call() -> None:
    compute = Recorder()
    service = service_of(compute)
    first, second = Router(service), Router(service)
    first.ask(1, (0, 2), (3, 1))
    second.ask(2, (3, 2))
    first.ask(3, (0, 1))

    service.step()

    assert compute.calls == [(0, {0: (0, 3), 3: (3, 6)})]
    assert first.first_column(1) == [10.0, 11.0, 12.0 * 4]
    assert second.first_column(2) == [20.0 * 4, 21.0 * 4]
    assert first.first_column(3) == [30.0]
    assert (service.num_calls, service.num_merged) == (3, 2)
    assert service.rows_by_expert == {0: 3, 3: 3}


def test_the_oldest_request_says_which_layer_is_next() -> None:
    compute = Recorder()
    service = service_of(compute)
    router = Router(service)
    router.ask(1, (0, 1), layer=2)
    router.ask(2, (0, 1), layer=0)
    router.ask(3, (0, 1), layer=2)

    service.step()
    service.step()

    assert [layer for layer, _ in compute.calls] == [2, 0]
    assert [answer.seq for answer in router.answers] == [1, 3, 2]
    assert service.is_idle


experts_and_rows = st.lists(
    st.tuples(st.integers(0, 7), st.integers(1, 5)),
    min_size=1,
    max_size=5,
    unique_by=lambda pair: pair[0],
)


@given(st.lists(experts_and_rows, min_size=1, max_size=6))
def test_merged_or_alone_every_request_gets_its_own_rows(
    asked: list[list[tuple[int, int]]],
) -> None:
    service = service_of()
    router = Router(service)
    for seq, rows in enumerate(asked):
        router.ask(seq, *rows)

    service.step()

    for seq, rows in enumerate(asked):
        factors = [expert_id + 1 for expert_id, number in rows for _ in range(number)]
        wanted = [(10.0 * seq + row) * factor for row, factor in enumerate(factors)]
        assert router.first_column(seq) == wanted


def test_an_expert_that_is_not_held_is_refused_at_once() -> None:
    service = service_of(expert_ids=lambda: (0, 1))
    router = Router(service)

    router.ask(1, (1, 1), (5, 1))

    assert router.answers == [Refusal(1, NOT_OWNER, "expert 5 is not held here")]
    assert service.is_idle


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        ({"layer": 3}, "got layer 3, dimension 4; want a layer below 3, dimension 4"),
        ({"dim": 5}, "got layer 0, dimension 5; want a layer below 3, dimension 4"),
        ({"dtype": "float16"}, "got float16, want float32"),
    ],
)
def test_a_request_for_another_model_is_refused(wrong: dict[str, Any], detail: str) -> None:
    service = service_of()
    router = Router(service)

    router.ask(1, (0, 1), **wrong)

    assert router.answers == [Refusal(1, BAD_REQUEST, detail)]
    assert service.is_idle


def test_a_refusal_fits_into_a_frame_however_many_experts_are_missing() -> None:
    router = Router(service_of(expert_ids=lambda: ()))

    router.ask(1, *((expert_id, 1) for expert_id in range(1_000)))

    [refusal] = router.answers
    assert isinstance(refusal, Refusal)
    assert len(refusal.detail) < 256


def test_a_request_past_its_deadline_is_refused_and_its_neighbour_is_not() -> None:
    clock = FakeClock()
    service = service_of(now_s=clock)
    router = Router(service)
    router.ask(1, (0, 1), deadline_ms=100)
    router.ask(2, (0, 1), deadline_ms=500)
    clock.advance(0.2)

    service.step()

    assert router.refusals() == [(1, EXPIRED)]
    assert router.first_column(2) == [20.0]


def fail_on(bad: float, error: Exception) -> Recorder:
    """Computes unless the number `bad` is among the rows."""

    class Failing(Recorder):
        def __call__(self, layer: int, x_RD: Tensor, slices: Slices) -> Tensor:
            if bool((x_RD == bad).any()):
                raise error
            return super().__call__(layer, x_RD, slices)

    return Failing()


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyError(3), MemoryError(), ValueError()])
def test_a_failing_computation_ends_its_own_request_and_no_other(error: Exception) -> None:
    service = service_of(fail_on(20.0, error))
    router = Router(service)
    for seq in (1, 2, 3):
        router.ask(seq, (0, 1))

    service.step()
    router.ask(4, (0, 1))
    service.step()

    assert router.refusals() == [(2, INTERNAL)]
    assert [router.first_column(seq) for seq in (1, 3, 4)] == [[10.0], [30.0], [40.0]]
    assert service.rows_by_expert == {0: 3}


def test_an_expert_handed_away_while_requests_wait_is_refused_to_those_who_need_it() -> None:
    held = {0: None, 5: None}

    def compute(layer: int, x_RD: Tensor, slices: Slices) -> Tensor:
        assert all(held[expert_id] is None for expert_id in slices)
        return times_expert(layer, x_RD, slices)

    service = service_of(compute, expert_ids=lambda: tuple(held))
    router = Router(service)
    router.ask(1, (0, 1))
    router.ask(2, (0, 1), (5, 1))
    del held[5]

    service.step()

    assert router.refusals() == [(2, NOT_OWNER)]
    assert router.first_column(1) == [10.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_pass_through_and_touch_no_neighbour(value: float) -> None:
    weight_DD = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))
    service = service_of(lambda layer, x_RD, slices: x_RD @ weight_DD)
    good, bad = Router(service), Router(service)
    request = ComputeRequest(1, 0, "float32", DIM, ((0, 2),), 1_000)
    good.send(request, torch.ones(2, DIM))
    bad.send(request, torch.tensor([[value] * DIM, [1.0] * DIM]))

    service.step()

    torch.testing.assert_close(good.outputs[1], torch.ones(2, DIM) @ weight_DD)
    assert not bad.outputs[1][0].isfinite().any()
    torch.testing.assert_close(bad.outputs[1][1], good.outputs[1][1])


def test_a_step_without_requests_does_nothing() -> None:
    compute = Recorder()

    service_of(compute).step()

    assert compute.calls == []
