"""The pool: whom it asks, when it connects, and what it makes of a loss."""

from collections.abc import Iterator

import pytest

from routing.errors import HandshakeError, LinkClosed, LinkError, LinkTimeout
from routing.link import Link
from routing.link_pool import RETRY_HOST_AFTER_S, Arrived, LinkPool, Lost
from routing.memory_link import MemoryLink
from routing.messages import ComputeReply, ComputeRequest
from routing.placement import HostView
from tests.faults import FakeClock, FakeDirectory, Fault, FaultyLink, Script
from tests.routing.conftest import open_descriptors
from tests.routing.hosts import DIM, service_of

ROWS = memoryview(bytearray(4 * DIM))


class Rig:
    """Two hosts with four experts each: host-0 holds the even ones, host-1 the odd ones."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.directory = FakeDirectory(
            8, {"host-0": 8, "host-1": 8}, lambda host_id, expert_ids: None, self.clock
        )
        self.directory.publish({"host-0": (0, 2, 4, 6), "host-1": (1, 3, 5, 7)})
        self.connected: list[str] = []
        self.errors: dict[str, LinkError] = {}
        self.script = Script()
        self.pool = LinkPool(self.directory, self._connect, self.clock)

    def _connect(self, host: HostView) -> Link:
        self.connected.append(host.host_id)
        if host.host_id in self.errors:
            raise self.errors[host.host_id]
        return FaultyLink(MemoryLink(service_of()), self.script)

    def send(self, host_id: str, seq: int = 1) -> Lost | None:
        """Ask a host for one row of expert 0."""
        request = ComputeRequest(seq, 0, "float32", DIM, ((0, 1),), 1_000)
        return self.pool.send(host_id, request, ROWS, 1.0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.pool.close()


def test_a_host_is_connected_to_when_it_is_first_needed_and_once(rig: Rig) -> None:
    owners = [rig.pool.owner(expert_id) for expert_id in (1, 3, 5)]

    assert owners == ["host-1"] * 3
    assert rig.connected == ["host-1"]
    assert repr(rig.pool) == "<LinkPool version 2, linked ['host-1']>"


def test_an_expert_that_no_host_serves_has_no_owner(rig: Rig) -> None:
    rig.directory.publish({"host-0": (0,)})
    rig.pool.refresh()

    assert rig.pool.owner(1) is None


@pytest.mark.parametrize("error", [LinkClosed("x"), LinkTimeout("x"), HandshakeError("x")])
def test_a_host_that_cannot_be_connected_to_is_reported_and_has_no_rows(
    rig: Rig, error: LinkError
) -> None:
    rig.errors["host-0"] = error

    owner = rig.pool.owner(0)

    assert owner is None
    assert rig.directory.lost == ["host-0"]


def test_a_copy_of_an_expert_is_asked_when_the_first_host_cannot_be_connected_to(
    rig: Rig,
) -> None:
    rig.directory.publish({"host-0": (0,), "host-1": (0,)})
    rig.pool.refresh()
    rig.errors["host-0"] = LinkClosed("x")

    assert rig.pool.owner(0) == "host-1"


def test_a_failed_host_is_retried_after_a_while_and_not_before(rig: Rig) -> None:
    rig.errors["host-0"] = LinkClosed("x")
    rig.pool.owner(0)
    del rig.errors["host-0"]

    rig.clock.advance(RETRY_HOST_AFTER_S - 0.1)
    too_early = rig.pool.owner(0)
    rig.clock.advance(0.2)

    assert too_early is None
    assert rig.pool.owner(0) == "host-0"
    assert rig.connected == ["host-0", "host-0"]


def test_a_host_that_left_and_came_back_is_not_retried_early(rig: Rig) -> None:
    placement = {"host-0": (0,), "host-1": (1,)}
    rig.pool.owner(0)
    rig.pool.drop("host-0", "on purpose")

    for hosts in ({"host-1": (1,)}, placement):
        rig.directory.publish(hosts)
        rig.pool.refresh()

    assert rig.pool.owner(0) is None
    rig.clock.advance(RETRY_HOST_AFTER_S)
    assert rig.pool.owner(0) == "host-0"


def test_a_reply_arrives_with_its_host_and_payload(rig: Rig) -> None:
    rig.pool.owner(0)

    rig.send("host-0", seq=7)

    [event] = rig.pool.poll(1.0)
    assert isinstance(event, Arrived)
    assert (event.host_id, event.reply) == ("host-0", ComputeReply(7, "float32", DIM, 1))
    assert bytes(event.payload) == bytes(ROWS)


def test_polling_without_news_waits_no_longer_than_told(rig: Rig) -> None:
    rig.pool.owner(0)

    assert rig.pool.poll(0.05) == []
    assert rig.pool.poll(-1.0) == []


@pytest.mark.parametrize("fault", [Fault.DIE_ON_SEND, Fault.BLOCK_ON_SEND])
def test_a_link_that_fails_on_sending_is_a_lost_host(rig: Rig, fault: Fault) -> None:
    rig.script = Script(fault)
    rig.pool.owner(0)

    lost = rig.send("host-0")

    assert lost == Lost("host-0")
    assert rig.directory.lost == ["host-0"]
    assert repr(rig.pool) == "<LinkPool version 2, linked []>"


@pytest.mark.parametrize("fault", [Fault.DIE_BEFORE_REPLY, Fault.CORRUPT_FRAME, Fault.WRONG_KIND])
def test_a_link_that_fails_on_receiving_is_a_lost_host(rig: Rig, fault: Fault) -> None:
    rig.script = Script(fault)
    rig.pool.owner(0)
    rig.send("host-0")

    events = rig.pool.poll(1.0)

    assert events == [Lost("host-0")]
    assert rig.directory.lost == ["host-0"]


def test_links_to_hosts_that_left_the_placement_are_closed_and_told(rig: Rig) -> None:
    before = open_descriptors()
    rig.pool.owner(0)
    rig.directory.kill("host-0")

    losses = rig.pool.refresh()

    assert losses == [Lost("host-0")]
    assert open_descriptors() == before
    assert rig.directory.lost == []


def test_a_placement_that_has_not_changed_changes_nothing(rig: Rig) -> None:
    rig.pool.owner(0)

    assert rig.pool.refresh() == []
    assert rig.pool.owner(0) == "host-0"


def test_waiting_follows_the_newer_placement(rig: Rig) -> None:
    rig.directory.publish({"host-1": (0, 1, 2, 3, 4, 5, 6, 7)})

    rig.pool.wait_newer(1.0)

    assert rig.pool.version == rig.directory.view().version
    assert rig.pool.owner(0) == "host-1"


def test_a_disowned_expert_is_asked_for_elsewhere_until_the_placement_changes(rig: Rig) -> None:
    rig.directory.publish({"host-0": (0, 2), "host-1": (0, 1)})
    rig.pool.refresh()

    rig.pool.disown("host-0", 0, rig.pool.version)

    assert rig.pool.owner(0) == "host-1"
    assert rig.pool.owner(2) == "host-0"
    rig.directory.publish({"host-0": (0, 2), "host-1": (1,)})
    rig.pool.refresh()
    assert rig.pool.owner(0) == "host-0"


def test_a_refusal_under_an_older_placement_does_not_count_under_the_newer(rig: Rig) -> None:
    old_version = rig.pool.version
    rig.directory.publish({"host-0": (0,), "host-1": (1,)})
    rig.pool.refresh()

    rig.pool.disown("host-0", 0, old_version)

    assert rig.pool.owner(0) == "host-0"


def test_the_last_sign_of_life_of_a_host_is_known(rig: Rig) -> None:
    rig.pool.owner(0)
    linked_at_s = rig.pool.heard_at_s("host-0")
    rig.clock.advance(3.0)
    rig.send("host-0")

    rig.pool.poll(1.0)

    assert rig.pool.heard_at_s("host-0") == linked_at_s + 3.0


def test_a_closed_pool_holds_no_descriptor() -> None:
    before = open_descriptors()
    rig = Rig()
    rig.pool.owner(0)
    rig.pool.owner(1)

    rig.pool.close()

    assert open_descriptors() == before
