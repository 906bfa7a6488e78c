"""Remote experts: whatever a host does, the tokens are those of an undisturbed run."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.transformer import Transformer
from routing.errors import ExpertFault, ExpertUnavailable
from routing.experts import ExpertCall, Forward, LocalExperts, drive
from routing.gating import Routes
from routing.link_pool import Arrived, LinkPool
from routing.memory_link import MemoryLink
from routing.messages import ComputeReply
from routing.remote_experts import Patience, RemoteExperts
from tests.checkpoints import TINY_MOE, random_tensors
from tests.faults import (
    LOSING,
    FakeClock,
    FakeDirectory,
    FakeTimePool,
    Fault,
    FaultyLink,
    Script,
)
from tests.routing.hosts import NUM_EXPERTS, MemoryCluster, service_of, times_expert
from tests.running import build, generate

TENSORS = random_tensors(TINY_MOE, 11)
PROMPT_IDS = [1, 17, 200, 5]
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def model() -> tuple[Transformer, LocalExperts]:
    return build(TINY_MOE, TENSORS)


@pytest.fixture(scope="module")
def undisturbed(model: tuple[Transformer, LocalExperts]) -> list[int]:
    """The tokens that every run must give."""
    return generate(*model, PROMPT_IDS, NUM_TOKENS)


def cluster(num_hosts: int, fault: Fault | None = None, at: int = 0) -> MemoryCluster:
    """Tiny experts on hosts, one request of which goes wrong."""
    return MemoryCluster(TINY_MOE, TENSORS, num_hosts, Script(fault, at))


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 5, 8])
def test_outputs_equal_those_of_local_experts(
    model: tuple[Transformer, LocalExperts], num_hosts: int
) -> None:
    generator = torch.Generator().manual_seed(num_hosts)
    x_TD = torch.randn(40, TINY_MOE.dim, generator=generator)
    logits_TE = torch.randn(40, TINY_MOE.num_experts, generator=generator)
    weights_TK, expert_ids_TK = logits_TE.softmax(-1).topk(2)
    remote = cluster(num_hosts)
    call = ExpertCall(1, x_TD, Routes(expert_ids_TK, weights_TK))

    output_TD = remote.experts.start(call).result()

    torch.testing.assert_close(output_TD, model[1].start(call).result(), atol=1e-6, rtol=0)
    remote.pool.close()


@pytest.mark.parametrize("num_hosts", [1, 3])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_a_fault_at_any_request_does_not_change_the_tokens(
    model: tuple[Transformer, LocalExperts], undisturbed: list[int], fault: Fault, num_hosts: int
) -> None:
    at = 0
    while True:
        remote = cluster(num_hosts, fault, at)

        token_ids = generate(model[0], remote.experts, PROMPT_IDS, NUM_TOKENS)

        remote.pool.close()
        assert token_ids == undisturbed
        if remote.script.num_hits == 0:
            break
        check_counters(remote, fault)
        at += 1
    assert at >= NUM_TOKENS * TINY_MOE.num_layers


def check_counters(remote: MemoryCluster, fault: Fault) -> None:
    """The fault was noticed, and counted as what it is."""
    counters = remote.experts.counters
    is_surplus = fault in (Fault.LATE_REPLY, Fault.DOUBLE_REPLY)
    assert remote.script.num_hits == 1
    assert bool(remote.directory.lost) == (fault in LOSING)
    assert (counters.lost_hosts > 0) == (fault in LOSING)
    assert counters.dropped_replies == int(is_surplus)
    assert (counters.resent > 0) == (fault in LOSING or fault is Fault.NOT_OWNER)


class EverySecond(Script):
    """Every second request meets a fault, each kind in turn."""

    def _fault_at(self, number: int) -> Fault | None:
        faults = list(Fault)
        return faults[number // 2 % len(faults)] if number % 2 else None


def test_one_fault_after_another_does_not_change_the_tokens(
    model: tuple[Transformer, LocalExperts],
) -> None:
    remote = MemoryCluster(TINY_MOE, TENSORS, 3, EverySecond())

    token_ids = generate(model[0], remote.experts, PROMPT_IDS, 50)

    remote.pool.close()
    assert token_ids == generate(*model, PROMPT_IDS, 50)
    assert remote.script.num_hits > 10 * len(Fault)


class Rig:
    """Hosts that multiply, with the experts that are published; links, a clock, no model."""

    def __init__(self, num_hosts: int, patience: Patience | None = None) -> None:
        self.clock = FakeClock()
        self.held: dict[str, tuple[int, ...]] = {}
        slots = {f"host-{number}": NUM_EXPERTS for number in range(num_hosts)}
        self.directory = FakeDirectory(NUM_EXPERTS, slots, self.held.__setitem__, self.clock)
        self.script = Script()
        self.pool = FakeTimePool(self.directory, lambda host: self._link(host.host_id), self.clock)
        self.experts = RemoteExperts(self.pool, patience or Patience(), self.clock)

    def _link(self, host_id: str) -> FaultyLink:
        service = service_of(expert_ids=lambda: self.held[host_id])
        return FaultyLink(MemoryLink(service), self.script)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(2)
    yield rig
    rig.pool.close()


def call_of(*expert_ids: int, layer: int = 0) -> ExpertCall:
    """One token per expert, all ones, each with one choice."""
    expert_ids_T1 = torch.tensor(expert_ids).unsqueeze(1)
    x_TD = torch.ones(len(expert_ids), 4)
    return ExpertCall(layer, x_TD, Routes(expert_ids_T1, torch.ones(len(expert_ids), 1)))


def local(call: ExpertCall) -> Tensor:
    """What the call must give."""
    return LocalExperts(times_expert).start(call).result()


def test_one_request_per_host_carries_the_rows_of_all_its_experts(rig: Rig) -> None:
    call = call_of(*range(8), 3, 3)

    output_TD = rig.experts.start(call).result()

    assert output_TD.equal(local(call))
    assert rig.script.num_requests == 2


def test_rows_that_do_not_fit_into_one_frame_go_in_several(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.remote_experts.MAX_PAYLOAD_BYTES", 2 * 4 * 4)
    rig.directory.publish({"host-0": tuple(range(8))})
    rig.held["host-0"] = tuple(range(8))
    call = call_of(0, 1, 2, 3, 4, 5, 5)

    output_TD = rig.experts.start(call).result()

    assert output_TD.equal(local(call))
    assert rig.script.num_requests == 4


def test_a_host_that_dies_between_two_frames_gets_no_more_of_them(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.remote_experts.MAX_PAYLOAD_BYTES", 4 * 4)
    rig.script = Script(Fault.DIE_ON_SEND, 1)
    call = call_of(*range(8))

    output_TD = rig.experts.start(call).result()

    assert output_TD.equal(local(call))


def test_replies_to_two_micro_batches_find_their_own_calls(rig: Rig) -> None:
    first, second = call_of(0, 1, 2), call_of(2, 3, 0, layer=1)

    pending = [rig.experts.start(call) for call in (first, second)]

    assert pending[1].result().equal(local(second))
    assert pending[0].result().equal(local(first))
    assert rig.experts.counters.dropped_replies == 0


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault in LOSING])
def test_a_host_lost_with_two_micro_batches_in_flight_spoils_neither(
    rig: Rig, fault: Fault, at: int
) -> None:
    rig.script = Script(fault, at)
    first, second = call_of(*range(8)), call_of(*range(8), layer=2)

    pending = [rig.experts.start(call) for call in (first, second)]
    outputs = [call.result() for call in pending]

    assert outputs[0].equal(local(first))
    assert outputs[1].equal(local(second))
    assert rig.script.num_hits == 1


def test_rows_with_a_host_that_left_the_placement_are_sent_again_at_once(rig: Rig) -> None:
    rig.script = Script(Fault.SLOW_REPLY)
    first, second = call_of(*range(8)), call_of(*range(8), layer=1)
    pending = rig.experts.start(first)
    began_s = rig.clock()

    rig.directory.kill("host-0")
    output_TD = rig.experts.start(second).result()

    assert output_TD.equal(local(second))
    assert pending.result().equal(local(first))
    assert rig.clock() == began_s
    assert rig.directory.lost == []


def test_a_refusal_of_yesterday_does_not_bar_a_host_today(rig: Rig) -> None:
    # Expert 7 moves while a request for 0 and 7 is on its way: the host refuses the request, but
    # is still the only one with expert 0.
    rig.script = Script(Fault.NOT_OWNER)
    rig.directory.publish({"host-0": (0, 7)})
    rig.held |= {"host-0": (0,), "host-1": (7,)}
    call = call_of(0, 7)
    pending = rig.experts.start(call)
    version = rig.directory.view().version

    rig.directory.publish({"host-0": (0,), "host-1": (7,)})
    rig.experts.start(call_of(0)).result()

    assert pending.result().equal(local(call))
    assert rig.directory.view().version == version + 1


def test_a_reply_to_a_request_that_another_host_was_sent_is_dropped(rig: Rig) -> None:
    call = call_of(0)
    pending = rig.experts.start(call)
    forged = Arrived("host-1", ComputeReply(1, "float32", 4, 1), memoryview(bytearray(16)))

    rig.experts._accept(forged)

    assert rig.experts.counters.dropped_replies == 1
    assert pending.result().equal(local(call))
    assert rig.script.num_requests == 1


def test_a_busy_router_does_not_blame_a_host_for_an_answer_it_has_not_read(rig: Rig) -> None:
    rig.script = Script(Fault.SLOW_REPLY)
    call = call_of(*range(8))
    pending = rig.experts.start(call)

    rig.clock.advance(60.0)

    assert pending.result().equal(local(call))
    assert rig.directory.lost == []


def test_no_owner_within_the_patience_is_an_error_that_names_the_expert(rig: Rig) -> None:
    rig.directory.publish({"host-0": (0, 1, 2)})
    rig.directory.is_frozen = True
    began_s = rig.clock()

    with pytest.raises(ExpertUnavailable, match="no host serves expert 5 of layer 2"):
        rig.experts.start(call_of(0, 5, layer=2)).result()

    assert 30.0 < rig.clock() - began_s < 31.0


def test_answers_are_taken_in_while_another_expert_has_no_owner(rig: Rig) -> None:
    rig.directory.publish({"host-0": (0,)})
    rig.directory.is_frozen = True
    pending = rig.experts.start(call_of(0, 5))

    with pytest.raises(ExpertUnavailable):
        pending.result()

    assert pending.missing == {5}
    assert rig.directory.lost == []


def test_rows_that_one_host_after_another_fails_on_are_an_error() -> None:
    class Refusing(Script):
        def _fault_at(self, number: int) -> Fault | None:
            return Fault.REFUSE

    rig = Rig(2, Patience(reply_s=1.0, owner_s=10.0))
    rig.script = Refusing()

    with pytest.raises(ExpertFault):
        rig.experts.start(call_of(*range(8))).result()

    assert rig.script.num_requests == 2
    rig.pool.close()


def test_when_a_forward_pass_fails_the_answers_to_the_others_are_dropped(rig: Rig) -> None:
    def forward() -> Forward[None]:
        yield call_of(0)

    def failing() -> Forward[None]:
        yield from ()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive([forward(), failing()], rig.experts)

    call = call_of(*range(8))
    assert rig.experts.start(call).result().equal(local(call))
    assert rig.experts.counters.dropped_replies == 1


class SilentLink(MemoryLink):
    """Takes requests and answers none."""

    def send(self, *request: object) -> None:
        pass


def test_a_silent_host_is_lost_after_the_patience_and_the_router_sleeps_until_then() -> None:
    clock = FakeClock()
    held: dict[str, tuple[int, ...]] = {}
    slots = {"host-0": 8, "host-1": 8}
    directory = FakeDirectory(8, slots, held.__setitem__, clock)
    kinds = {"host-0": SilentLink, "host-1": MemoryLink}
    pool = LinkPool(directory, lambda host: kinds[host.host_id](service_of()))
    experts = RemoteExperts(pool, Patience(reply_s=0.2, owner_s=5.0))
    call = call_of(*range(8))
    began_s, began_cpu_s = time.monotonic(), time.process_time()

    output_TD = experts.start(call).result()

    assert 0.2 <= time.monotonic() - began_s < 1.0
    assert time.process_time() - began_cpu_s < 0.1
    assert output_TD.equal(local(call))
    assert directory.lost == ["host-0"]
    pool.close()
