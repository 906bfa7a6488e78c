"""Faults on purpose: links that misbehave at a chosen moment, a directory, a clock that is told."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto

from routing.errors import LinkClosed, LinkTimeout, PlacementError
from routing.link import Link
from routing.link_pool import Arrived, Directory, LinkPool, Lost
from routing.memory_link import MemoryLink
from routing.messages import INTERNAL, NOT_OWNER, ComputeReply, ComputeRequest, Refusal
from routing.placement import HostView, PlacementView, place
from routing.wire import Frame, FrameReader, encode


class Fault(Enum):
    """What goes wrong with one request."""

    REFUSE = auto()  # the host answers that its computation failed
    NOT_OWNER = auto()  # the host answers that it does not hold the experts
    DIE_ON_SEND = auto()  # the link breaks before the request is out
    BLOCK_ON_SEND = auto()  # the host takes no more bytes
    DIE_BEFORE_REPLY = auto()  # the link breaks after the request is out
    DROP_REPLY = auto()  # nothing comes back
    SLOW_REPLY = auto()  # the reply takes some looks to be whole
    LATE_REPLY = auto()  # replies to requests of long ago come before the right one
    DOUBLE_REPLY = auto()  # the reply comes twice
    CORRUPT_FRAME = auto()  # a bit of the reply is flipped
    WRONG_SHAPE = auto()  # the reply has a row too few
    WRONG_KIND = auto()  # what comes back is no reply


LOSING = frozenset(Fault) - {
    Fault.NOT_OWNER,
    Fault.SLOW_REPLY,
    Fault.LATE_REPLY,
    Fault.DOUBLE_REPLY,
}
"""Faults after which the host counts as lost."""


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class Script:
    """`fault` hits the request number `at`, counted from 0 over all links that share the script."""

    def __init__(self, fault: Fault | None = None, at: int = 0) -> None:
        self.num_requests = 0
        self.num_hits = 0
        self._fault = fault
        self._at = at

    def next(self) -> Fault | None:
        """Count a request; the fault that hits it, if any does."""
        fault = self._fault_at(self.num_requests)
        self.num_requests += 1
        self.num_hits += fault is not None
        return fault

    def _fault_at(self, number: int) -> Fault | None:
        return self._fault if number == self._at else None


class FaultyLink:
    """A memory link that obeys a script. Mutable state: faults on their way, by request."""

    def __init__(self, link: MemoryLink, script: Script) -> None:
        self._link = link
        self._script = script
        self._faults: dict[int, Fault] = {}
        self._looks_left = 0

    def send(self, request: ComputeRequest, payload: memoryview, timeout_s: float) -> None:
        fault = self._script.next()
        if fault is Fault.DIE_ON_SEND:
            raise LinkClosed("the link broke on purpose")
        if fault is Fault.BLOCK_ON_SEND:
            raise LinkTimeout("the host takes no more bytes, on purpose")
        if fault is Fault.DROP_REPLY:
            return
        self._link.send(request, payload, timeout_s)
        if fault is not None:
            self._faults[request.seq] = fault
            self._looks_left = 3 if fault is Fault.SLOW_REPLY else 0

    def receive(self) -> list[Frame]:
        if self._looks_left:
            self._looks_left -= 1
            return []
        if Fault.DIE_BEFORE_REPLY in self._faults.values():
            raise LinkClosed("the host died on purpose")
        return [spoilt for frame in self._link.receive() for spoilt in self._spoil(frame)]

    def fileno(self) -> int:
        return self._link.fileno()

    def close(self) -> None:
        self._link.close()

    def _spoil(self, frame: Frame) -> list[Frame]:
        reply = frame.message
        fault = self._faults.pop(reply.seq, None) if isinstance(reply, ComputeReply) else None
        return [frame] if fault is None else _spoil(frame, fault)


class FakeTimePool(LinkPool):
    """A pool on a fake clock: where it would sleep, it moves the clock."""

    def __init__(
        self, directory: Directory, connect: Callable[[HostView], Link], clock: FakeClock
    ) -> None:
        super().__init__(directory, connect, clock)
        self._clock = clock

    def poll(self, timeout_s: float) -> list[Arrived | Lost]:
        if not self._selector.select(0.0):
            self._clock.advance(max(0.0, timeout_s))
        return super().poll(0.0)


def _spoil(frame: Frame, fault: Fault) -> list[Frame]:
    """What a faulty host sends in place of a good reply."""
    reply = frame.message
    assert isinstance(reply, ComputeReply)
    if fault is Fault.REFUSE:
        return [_frame(Refusal(reply.seq, INTERNAL, "on purpose"))]
    if fault is Fault.NOT_OWNER:
        return [_frame(Refusal(reply.seq, NOT_OWNER, "on purpose"))]
    if fault is Fault.LATE_REPLY:
        zeros = memoryview(bytearray(len(frame.payload)))
        return [Frame(replace(reply, seq=reply.seq + 10**6), zeros), frame]
    if fault is Fault.DOUBLE_REPLY:
        zeros = memoryview(bytearray(len(frame.payload)))
        return [frame, Frame(reply, zeros)]
    if fault is Fault.CORRUPT_FRAME:
        return [_flipped(frame)]
    if fault is Fault.WRONG_SHAPE:
        row = len(frame.payload) // reply.num_rows
        return [Frame(replace(reply, num_rows=reply.num_rows + 1), frame.payload[row:])]
    if fault is Fault.WRONG_KIND:
        request = ComputeRequest(reply.seq, 0, "float32", 1, ((0, 1),), 0)
        return [Frame(request, frame.payload)]
    return [frame]


def _frame(message: Refusal) -> Frame:
    return Frame(message, memoryview(b""))


def _flipped(frame: Frame) -> Frame:
    """Read the frame again with its last bit flipped; raises FrameError."""
    data = bytearray(b"".join(encode(frame.message, frame.payload)))
    data[-1] ^= 1
    frames = read_frames(FrameReader(), bytes(data))
    return frames[0]


def read_frames(reader: FrameReader, data: bytes) -> list[Frame]:
    """Feed bytes to a reader; the frames that became whole."""
    frames = []
    while data:
        buffer = reader.buffer()[: len(data)]
        buffer[:] = data[: len(buffer)]
        data = data[len(buffer) :]
        frame = reader.received(len(buffer))
        if frame is not None:
            frames.append(frame)
    return frames


class FakeDirectory:
    """A placement that follows what routers report, at once.

    A lost host's experts are taken over by the others; if it lives it joins again once somebody
    has waited `rejoin_after_s`. Waiting costs no real time: the clock is moved. While `is_frozen`
    it publishes nothing on its own.

    Args:
        slots: of each living host.
        hold: tells a host which experts to hold.
    """

    def __init__(
        self,
        num_experts: int,
        slots: Mapping[str, int],
        hold: Callable[[str, tuple[int, ...]], None],
        clock: FakeClock,
        rejoin_after_s: float = 0.5,
    ) -> None:
        self.lost: list[str] = []
        self.is_frozen = False
        self._num_experts = num_experts
        self._slots = dict(slots)
        self._hold = hold
        self._clock = clock
        self._rejoin_after_s = rejoin_after_s
        self._gone: dict[str, tuple[int, float]] = {}
        self._placement: dict[str, tuple[int, ...]] = {}
        self._view = PlacementView(0, ())
        self._replan()

    def view(self) -> PlacementView:
        return self._view

    def wait_newer(self, version: int, timeout_s: float) -> PlacementView:
        self._clock.advance(timeout_s)
        if self.is_frozen:
            return self._view
        for host_id, (num_slots, lost_at_s) in list(self._gone.items()):
            if self._clock() - lost_at_s >= self._rejoin_after_s:
                self._slots[host_id] = num_slots
                del self._gone[host_id]
        if self._view.version <= version:
            self._replan()
        return self._view

    def report_lost(self, host_id: str) -> None:
        self.lost.append(host_id)
        if host_id in self._slots and not self.is_frozen:
            self._gone[host_id] = (self._slots.pop(host_id), self._clock())
            self._replan()

    def kill(self, host_id: str) -> None:
        """Take a host out of the placement for good, as the Placement does on its own."""
        del self._slots[host_id]
        self._replan()

    def publish(self, placement: Mapping[str, tuple[int, ...]]) -> None:
        """Publish a placement as it is given, without telling the hosts."""
        hosts = tuple(
            HostView(host_id, "node", (f"memory:{host_id}",), expert_ids)
            for host_id, expert_ids in sorted(placement.items())
        )
        self._placement = dict(placement)
        self._view = PlacementView(self._view.version + 1, hosts)

    def _replan(self) -> None:
        load = [1.0] * self._num_experts
        try:
            placement = place(self._num_experts, self._slots, self._placement, load)
        except PlacementError:
            placement = {host: self._placement.get(host, ()) for host in self._slots}
        for host_id, expert_ids in placement.items():
            self._hold(host_id, expert_ids)
        self.publish(placement)
