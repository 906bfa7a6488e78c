"""Experts on other hosts: dispatch rows over links, gather the answers, combine them here.

Every sending of rows is a shipment with a number of its own. When a host is lost, refuses or is
too slow, its shipments are forgotten and the rows sent again, to whoever serves the expert then;
an answer to a forgotten shipment is dropped. Experts are pure functions, so that is safe.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from routing.dispatch import DispatchPlan, plan_dispatch
from routing.errors import ExpertFault, ExpertUnavailable
from routing.experts import ExpertCall
from routing.link_pool import Arrived, LinkPool, Lost
from routing.messages import EXPIRED, NOT_OWNER, ComputeReply, ComputeRequest, Refusal
from routing.tensors import dtype_name, from_bytes, to_bytes
from routing.wire import MAX_PAYLOAD_BYTES

# Letters: R rows sorted by expert, D model dimension.

OWNER_POLL_S = 0.1
MAX_FAULTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a router waits.

    Attributes:
        reply_s: for a sign of life from a host that owes an answer, before it counts as lost.
        owner_s: for some host to answer for an expert that none serves.
    """

    reply_s: float = 5.0
    owner_s: float = 30.0


@dataclass(slots=True)
class RemoteCall:
    """An expert call under way.

    Mutable state: `y_RD` fills up; `missing` are the experts whose rows are not back yet, `unsent`
    those of them whose rows are not with a host either.
    """

    call: ExpertCall
    plan: DispatchPlan
    x_RD: Tensor
    y_RD: Tensor
    missing: set[int]
    unsent: set[int]
    experts: "RemoteExperts"
    num_faults: int = 0

    def result(self) -> Tensor:
        """Wait for all rows and combine them: (T, D)."""
        self.experts.finish(self)
        y_RD = self.y_RD.to(self.call.x_TD.device)
        return self.plan.combine(y_RD, self.call.routes.weights_TK)

    def abandon(self) -> None:
        """Give the call up; answers still to come are dropped."""
        self.experts.abandon(self)

    def num_rows(self, expert_id: int) -> int:
        """Rows for one expert."""
        first, end = self.plan.slices[expert_id]
        return end - first


@dataclass(frozen=True, slots=True)
class _Shipment:
    remote_call: RemoteCall
    host_id: str
    expert_ids: tuple[int, ...]
    version: int
    sent_s: float


@dataclass(slots=True)
class Counters:
    """What happened on this router's links so far; shown by `mixray status`.

    Attributes:
        resent: sendings of rows that had to be repeated.
        lost_hosts: links to hosts that failed, or that went in good order.
    """

    calls: int = 0
    resent: int = 0
    dropped_replies: int = 0
    lost_hosts: int = 0


class RemoteExperts:
    """The `Experts` of a router with expert hosts. Driven by one thread."""

    def __init__(
        self,
        pool: LinkPool,
        patience: Patience,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self._pool = pool
        self._patience = patience
        self._now_s = now_s
        self._next_seq = 1
        self._shipments: dict[int, _Shipment] = {}

    def start(self, call: ExpertCall) -> RemoteCall:
        """Send the call's rows to their hosts."""
        self.counters.calls += 1
        self._forget(self._pool.refresh())
        plan = plan_dispatch(call.routes)
        x_RD = plan.dispatch(call.x_TD)
        y_RD = torch.empty_like(x_RD, device="cpu")
        missing, unsent = set(plan.slices), set(plan.slices)
        remote_call = RemoteCall(call, plan, x_RD, y_RD, missing, unsent, self)
        self._ship(remote_call)
        return remote_call

    def finish(self, remote_call: RemoteCall) -> None:
        """Gather until nothing is missing, sending again what was lost.

        Raises:
            ExpertUnavailable: rows could not be sent, and none came back, for `owner_s`.
            ExpertFault: one host after another failed on the rows.
        """
        moved_on_s = self._now_s()
        num_missing = len(remote_call.missing)
        while remote_call.missing:
            if remote_call.num_faults >= MAX_FAULTS:
                self.abandon(remote_call)
                raise ExpertFault(f"layer {remote_call.call.layer}: {MAX_FAULTS} hosts failed")
            if remote_call.unsent:
                self._ship(remote_call)
            if not remote_call.unsent:
                self._gather(self._until_due_s())
            elif self._now_s() - moved_on_s > self._patience.owner_s:
                self.abandon(remote_call)
                expert_id, layer = min(remote_call.unsent), remote_call.call.layer
                raise ExpertUnavailable(f"no host serves expert {expert_id} of layer {layer}")
            else:
                self._forget(self._pool.wait_newer(OWNER_POLL_S))
                self._gather(0.0)
            if len(remote_call.missing) < num_missing:
                num_missing = len(remote_call.missing)
                moved_on_s = self._now_s()

    def close(self) -> None:
        """Close every link."""
        self._pool.close()

    def abandon(self, remote_call: RemoteCall) -> None:
        """Forget the call's shipments."""
        for seq in [seq for seq, s in self._shipments.items() if s.remote_call is remote_call]:
            del self._shipments[seq]

    def _ship(self, remote_call: RemoteCall) -> None:
        """Send rows to the hosts that serve their experts; what has no host stays unsent."""
        by_host: dict[str, list[int]] = {}
        for expert_id in sorted(remote_call.unsent):
            host_id = self._pool.owner(expert_id)
            if host_id is not None:
                by_host.setdefault(host_id, []).append(expert_id)
        for host_id, host_experts in by_host.items():
            for part in _parts(remote_call, host_experts):
                if not self._send(remote_call, host_id, part):
                    break

    def _send(self, remote_call: RemoteCall, host_id: str, expert_ids: list[int]) -> bool:
        """Send rows to a linked host; say whether it is linked still."""
        x_RD = remote_call.x_RD
        rows_RD = torch.cat([x_RD[slice(*remote_call.plan.slices[e])] for e in expert_ids])
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        request = ComputeRequest(
            seq,
            remote_call.call.layer,
            dtype_name(x_RD.dtype),
            x_RD.shape[1],
            tuple((expert_id, remote_call.num_rows(expert_id)) for expert_id in expert_ids),
            int(self._patience.reply_s * 1000),
        )
        self._shipments[seq] = _Shipment(
            remote_call, host_id, tuple(expert_ids), self._pool.version, self._now_s()
        )
        remote_call.unsent.difference_update(expert_ids)
        lost = self._pool.send(host_id, request, to_bytes(rows_RD), self._patience.reply_s)
        if lost is not None:
            self._forget([lost])
        return lost is None

    def _gather(self, timeout_s: float) -> None:
        """Take in whatever arrives, and give up on hosts that have been silent for too long."""
        for event in self._pool.poll(timeout_s):
            if isinstance(event, Lost):
                self._forget([event])
            else:
                self._accept(event)
        now_s = self._now_s()
        late = {s.host_id for s in self._shipments.values() if self._due_s(s) <= now_s}
        self._forget([self._pool.drop(host_id, "did not answer in time") for host_id in late])

    def _until_due_s(self) -> float:
        return min(map(self._due_s, self._shipments.values())) - self._now_s()

    def _due_s(self, shipment: _Shipment) -> float:
        # Bytes count as a sign of life: this router may itself have been busy for longer than it
        # is patient, and the answer, half read, may be all there.
        heard_s = self._pool.heard_at_s(shipment.host_id)
        return max(shipment.sent_s, heard_s) + self._patience.reply_s

    def _accept(self, event: Arrived) -> None:
        reply = event.reply
        shipment = self._shipments.get(reply.seq)
        if shipment is None or shipment.host_id != event.host_id:
            self.counters.dropped_replies += 1
        elif isinstance(reply, Refusal) and reply.code == NOT_OWNER:
            # Not asked again under the placement that named it, which may not be today's.
            for expert_id in shipment.expert_ids:
                self._pool.disown(shipment.host_id, expert_id, shipment.version)
            self._unship(reply.seq)
        elif isinstance(reply, Refusal) and reply.code == EXPIRED:
            self._unship(reply.seq)
        elif isinstance(reply, Refusal):
            # One failure may be the host's, so others take over; the next is the rows' own.
            shipment.remote_call.num_faults += 1
            self._forget([self._pool.drop(event.host_id, f"refused: {reply.code}")])
        elif not _fits(shipment, reply):
            self._forget([self._pool.drop(event.host_id, "answered in another shape")])
        else:
            del self._shipments[reply.seq]
            _store(shipment, event)

    def _forget(self, losses: Iterable[Lost]) -> None:
        for lost in losses:
            self.counters.lost_hosts += 1
            for seq in [seq for seq, s in self._shipments.items() if s.host_id == lost.host_id]:
                self._unship(seq)

    def _unship(self, seq: int) -> None:
        """Forget a shipment; its rows must be sent again."""
        shipment = self._shipments.pop(seq)
        shipment.remote_call.unsent.update(shipment.expert_ids)
        self.counters.resent += 1


def _parts(remote_call: RemoteCall, expert_ids: list[int]) -> Iterator[list[int]]:
    """Part experts so that the rows of each part fit into one frame."""
    max_rows = MAX_PAYLOAD_BYTES // (remote_call.x_RD.shape[1] * remote_call.x_RD.element_size())
    part: list[int] = []
    num_rows = 0
    for expert_id in expert_ids:
        num_rows += remote_call.num_rows(expert_id)
        if part and num_rows > max_rows:
            yield part
            part, num_rows = [], remote_call.num_rows(expert_id)
        part.append(expert_id)
    yield part


def _fits(shipment: _Shipment, reply: ComputeReply) -> bool:
    x_RD = shipment.remote_call.x_RD
    num_rows = sum(map(shipment.remote_call.num_rows, shipment.expert_ids))
    want = (num_rows, x_RD.shape[1], dtype_name(x_RD.dtype))
    return (reply.num_rows, reply.dim, reply.dtype) == want


def _store(shipment: _Shipment, event: Arrived) -> None:
    """Copy a reply's rows to their places."""
    assert isinstance(event.reply, ComputeReply)
    remote_call = shipment.remote_call
    rows_RD = from_bytes(event.payload, event.reply.dtype, event.reply.dim)
    taken = 0
    for expert_id in shipment.expert_ids:
        first, end = remote_call.plan.slices[expert_id]
        remote_call.y_RD[first:end] = rows_RD[taken : taken + end - first]
        remote_call.missing.discard(expert_id)
        taken += end - first
