"""The seam between a model's forward pass and whatever computes its experts.

A forward pass is a generator: it yields an `ExpertCall` for each mixture-of-experts layer and is
sent the combined output. `drive` runs any number of such generators, one per micro-batch, against
any `Experts`: local ones answer at once, remote ones while other micro-batches go on.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from routing.dispatch import plan_dispatch
from routing.gating import Routes

# Letters: T tokens, D model dimension, R rows sorted by expert.

Output = TypeVar("Output")

ComputeRows = Callable[[int, Tensor, Mapping[int, tuple[int, int]]], Tensor]
"""(layer, x_RD, slice of rows of each expert) -> y_RD, a pure function."""


@dataclass(frozen=True, slots=True)
class ExpertCall:
    """What a layer asks of its experts: `x_TD`, the tokens, and each token's `routes`."""

    layer: int
    x_TD: Tensor
    routes: Routes


class PendingCall(Protocol):
    """An expert call under way."""

    def result(self) -> Tensor:
        """Wait for the experts and return the combined output (T, D).

        Raises:
            ExpertUnavailable: no host can serve one of the experts.
        """

    def abandon(self) -> None:
        """Give the call up; what its experts still answer is dropped."""


class Experts(Protocol):
    """Whatever computes the experts of a model."""

    def start(self, call: ExpertCall) -> PendingCall:
        """Begin an expert call without waiting for its end."""


@dataclass(frozen=True, slots=True)
class Done:
    """An expert call that was over as soon as it began."""

    output_TD: Tensor

    def result(self) -> Tensor:
        return self.output_TD

    def abandon(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class LocalExperts:
    """Experts held by this process itself."""

    compute_rows: ComputeRows

    def start(self, call: ExpertCall) -> Done:
        plan = plan_dispatch(call.routes)
        rows_RD = self.compute_rows(call.layer, plan.dispatch(call.x_TD), plan.slices)
        return Done(plan.combine(rows_RD, call.routes.weights_TK))


Forward = Generator[ExpertCall, Tensor, Output]


def drive(forwards: Sequence[Forward[Output]], experts: Experts) -> list[Output]:
    """Run forward passes to their ends, in turn, so that one's experts overlap the others' work.

    If one fails, the calls of the others that are under way are abandoned.
    """
    outputs: dict[int, Output] = {}
    pending: dict[int, PendingCall] = {}

    def advance(index: int, answer: Tensor | None) -> None:
        forward = forwards[index]
        try:
            call = next(forward) if answer is None else forward.send(answer)
        except StopIteration as end:
            outputs[index] = end.value
        else:
            pending[index] = experts.start(call)

    try:
        for index in range(len(forwards)):
            advance(index, None)
        while pending:
            index = next(iter(pending))
            advance(index, pending.pop(index).result())
    finally:
        for call in pending.values():
            call.abandon()
    return [outputs[index] for index in range(len(forwards))]
