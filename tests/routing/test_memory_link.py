"""The link within a process behaves as one over a socket."""

import select

import pytest

from routing.errors import LinkClosed
from routing.memory_link import MemoryLink
from routing.messages import NOT_OWNER, ComputeReply, ComputeRequest, Refusal
from tests.routing.conftest import open_descriptors
from tests.routing.hosts import DIM, service_of

ROW = memoryview(bytearray(4 * DIM))


def request(seq: int, expert_id: int = 0) -> ComputeRequest:
    """One row."""
    return ComputeRequest(seq, 0, "float32", DIM, ((expert_id, 1),), 1_000)


def is_readable(link: MemoryLink) -> bool:
    """Whether a selector would say that something has come."""
    return bool(select.select([link], [], [], 0)[0])


def test_replies_are_there_at_once_and_only_once() -> None:
    link = MemoryLink(service_of())
    assert not is_readable(link)

    for seq in (1, 2):
        link.send(request(seq), ROW, 1.0)

    assert is_readable(link)
    wanted = [ComputeReply(seq, "float32", DIM, 1) for seq in (1, 2)]
    assert [frame.message for frame in link.receive()] == wanted
    assert not is_readable(link)
    assert link.receive() == []
    link.close()


def test_a_refusal_comes_back_as_a_reply() -> None:
    link = MemoryLink(service_of(expert_ids=lambda: (1,)))

    link.send(request(1, expert_id=5), ROW, 1.0)

    [frame] = link.receive()
    assert frame.message == Refusal(1, NOT_OWNER, "expert 5 is not held here")
    link.close()


def test_a_closed_link_is_of_no_use_and_holds_nothing() -> None:
    before = open_descriptors()
    link = MemoryLink(service_of())

    link.close()
    link.close()

    assert open_descriptors() == before
    with pytest.raises(LinkClosed):
        link.send(request(1), ROW, 1.0)
    with pytest.raises(LinkClosed):
        link.receive()


def test_a_reply_to_a_link_that_was_closed_meanwhile_is_dropped() -> None:
    service = service_of()
    link, other = MemoryLink(service), MemoryLink(service)
    service.submit(request(1), ROW, link._answer)
    link.close()

    other.send(request(2), ROW, 1.0)

    assert [frame.message.seq for frame in other.receive()] == [2]  # type: ignore[union-attr]
    other.close()
