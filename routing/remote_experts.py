"""Experts on other hosts: dispatch rows over links, gather the answers, combine them here.

Every sending of rows is a shipment with a number of its own. When a host is lost, refuses or is
too slow, its shipments are forgotten and the rows sent again, to whoever serves the expert then;
an answer to a forgotten shipment is dropped. Experts are pure functions, so that is safe.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from routing.dispatch import DispatchPlan, plan_dispatch
from routing.errors import ExpertUnavailable
from routing.experts import ExpertCall
from routing.link_pool import Arrived, LinkPool, Lost
from routing.messages import NOT_OWNER, ComputeReply, ComputeRequest, Refusal
from routing.tensors import dtype_name, from_bytes, to_bytes

# Letters: R rows sorted by expert, D model dimension.


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a router waits.

    Attributes:
        reply_s: for one answer before the host counts as lost.
        owner_s: for some host to serve an expert that none does.
    """

    reply_s: float = 5.0
    owner_s: float = 30.0


@dataclass(slots=True)
class RemoteCall:
    """An expert call under way: `missing` are the experts whose rows are not back yet."""

    call: ExpertCall
    plan: DispatchPlan
    x_RD: Tensor
    y_RD: Tensor
    missing: set[int]
    finish: Callable[["RemoteCall"], None]

    def result(self) -> Tensor:
        """Wait for all rows and combine them: (T, D)."""
        self.finish(self)
        y_RD = self.y_RD.to(self.call.x_TD.device)
        return self.plan.combine(y_RD, self.call.routes.weights_TK)


@dataclass(frozen=True, slots=True)
class _Shipment:
    remote_call: RemoteCall
    host_id: str
    expert_ids: tuple[int, ...]
    due_s: float


@dataclass(slots=True)
class Counters:
    """What happened on this router's links so far."""

    calls: int = 0
    resent: int = 0
    dropped_replies: int = 0
    lost_hosts: int = field(default=0)


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
        self._pool.refresh()
        plan = plan_dispatch(call.routes)
        x_RD = plan.dispatch(call.x_TD)
        y_RD = torch.empty_like(x_RD, device="cpu")
        remote_call = RemoteCall(call, plan, x_RD, y_RD, set(plan.slices), self._finish)
        self._ship(remote_call, remote_call.missing)
        return remote_call

    def _finish(self, remote_call: RemoteCall) -> None:
        """Gather until nothing is missing, sending again what was lost."""
        homeless_since_s: float | None = None
        while remote_call.missing:
            unsent = self._unsent(remote_call)
            if unsent:
                self._ship(remote_call, unsent)
                unsent = self._unsent(remote_call)
            if not unsent:
                homeless_since_s = None
                self._gather()
                continue
            now_s = self._now_s()
            homeless_since_s = now_s if homeless_since_s is None else homeless_since_s
            if now_s - homeless_since_s > self._patience.owner_s:
                self._abandon(remote_call)
                raise ExpertUnavailable(
                    f"no host serves expert {min(unsent)} of layer {remote_call.call.layer}"
                )
            self._pool.wait_newer(timeout_s=0.1)

    def _unsent(self, remote_call: RemoteCall) -> set[int]:
        under_way = {
            expert_id
            for shipment in self._shipments.values()
            if shipment.remote_call is remote_call
            for expert_id in shipment.expert_ids
        }
        return remote_call.missing - under_way

    def _ship(self, remote_call: RemoteCall, expert_ids: Iterable[int]) -> None:
        """Send rows to the hosts that serve their experts; what has no host stays unsent."""
        by_host: dict[str, list[int]] = {}
        for expert_id in sorted(expert_ids):
            host_id = self._pool.owner(expert_id)
            if host_id is not None:
                by_host.setdefault(host_id, []).append(expert_id)
        for host_id, host_experts in by_host.items():
            self._send(remote_call, host_id, host_experts)

    def _send(self, remote_call: RemoteCall, host_id: str, expert_ids: list[int]) -> None:
        slices = [remote_call.plan.slices[expert_id] for expert_id in expert_ids]
        x_RD = remote_call.x_RD
        rows_RD = torch.cat([x_RD[first:end] for first, end in slices])
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        request = ComputeRequest(
            seq,
            remote_call.call.layer,
            dtype_name(x_RD.dtype),
            x_RD.shape[1],
            tuple((e, end - first) for e, (first, end) in zip(expert_ids, slices, strict=True)),
            int(self._patience.reply_s * 1000),
        )
        due_s = self._now_s() + self._patience.reply_s
        self._shipments[seq] = _Shipment(remote_call, host_id, tuple(expert_ids), due_s)
        lost = self._pool.send(host_id, request, to_bytes(rows_RD), self._patience.reply_s)
        if lost is not None:
            self._forget_host(lost)

    def _gather(self) -> None:
        """Take in whatever arrives, and give up on hosts that let a deadline pass."""
        due_s = min(shipment.due_s for shipment in self._shipments.values())
        for event in self._pool.poll(due_s - self._now_s()):
            if isinstance(event, Lost):
                self._forget_host(event)
            else:
                self._accept(event)
        now_s = self._now_s()
        for host_id in {s.host_id for s in self._shipments.values() if s.due_s <= now_s}:
            self._forget_host(self._pool.drop(host_id, "no answer in time"))

    def _accept(self, event: Arrived) -> None:
        shipment = self._shipments.pop(event.reply.seq, None)
        if shipment is None or shipment.host_id != event.host_id:
            self.counters.dropped_replies += 1
        elif isinstance(event.reply, Refusal):
            self._accept_refusal(shipment, event.reply)
        elif not _fits(shipment, event.reply):
            self._forget_host(self._pool.drop(event.host_id, "answer of the wrong shape"))
        else:
            _store(shipment, event)

    def _accept_refusal(self, shipment: _Shipment, refusal: Refusal) -> None:
        """A host that lost an expert is asked no more for it; any other refusal is a fault."""
        if refusal.code == NOT_OWNER:
            for expert_id in shipment.expert_ids:
                self._pool.disown(shipment.host_id, expert_id)
            self.counters.resent += 1
        else:
            self._forget_host(self._pool.drop(shipment.host_id, f"refused: {refusal.code}"))
            self.counters.resent += 1

    def _forget_host(self, lost: Lost) -> None:
        self.counters.lost_hosts += 1
        gone = [seq for seq, s in self._shipments.items() if s.host_id == lost.host_id]
        self.counters.resent += len(gone)
        for seq in gone:
            del self._shipments[seq]

    def _abandon(self, remote_call: RemoteCall) -> None:
        for seq in [s for s, sh in self._shipments.items() if sh.remote_call is remote_call]:
            del self._shipments[seq]


def _fits(shipment: _Shipment, reply: ComputeReply) -> bool:
    plan, x_RD = shipment.remote_call.plan, shipment.remote_call.x_RD
    sizes = (end - first for first, end in map(plan.slices.__getitem__, shipment.expert_ids))
    want = (sum(sizes), x_RD.shape[1], dtype_name(x_RD.dtype))
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
