"""The router's end of a socket: addresses, time limits, and hosts that are none."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from routing.errors import HandshakeError, LinkClosed, LinkError, LinkTimeout
from routing.handshake import HostHandshake
from routing.messages import (
    PROTOCOL_VERSION,
    Challenge,
    ComputeReply,
    ComputeRequest,
    Message,
    Refusal,
    Welcome,
)
from routing.socket_link import SocketLink, parse_address, without
from routing.tensors import to_bytes
from routing.wire import MAX_PAYLOAD_BYTES, PREFIX, FrameReader, encode
from tests.faults import read_frames
from tests.routing.hosts import identity, service_of, serving


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("unix:name", (socket.AF_UNIX, "\0name")),
        ("tcp:127.0.0.1:80", (socket.AF_INET, ("127.0.0.1", 80))),
        ("tcp:::1:65535", (socket.AF_INET6, ("::1", 65_535))),
        ("tcp:node-3:0", (socket.AF_INET, ("node-3", 0))),
    ],
)
def test_an_address_names_its_family_and_target(address: str, parsed: object) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address", ["", "unix:", "tcp:", "tcp:host", "tcp:host:", "tcp::1", "tcp:h:65536", "ipc:x", "x"]
)
def test_any_other_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(LinkError, match=f"{address!r}: want unix:NAME or tcp:HOST:PORT"):
        parse_address(address)


def test_nobody_at_the_address_is_a_closed_link() -> None:
    with pytest.raises(LinkClosed, match="unix:mixray-nobody"):
        SocketLink("unix:mixray-nobody", identity(), 1.0)


def test_bytes_sent_in_part_leave_the_rest() -> None:
    parts = [memoryview(b"abc"), memoryview(b"de"), memoryview(b"f")]

    rests = [b"|".join(without(parts, count)) for count in range(7)]

    assert rests == [b"abc|de|f", b"bc|de|f", b"c|de|f", b"de|f", b"e|f", b"f", b""]


@contextmanager
def host_that(behaves: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a host that accepts one connection and does with it what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            behaves(connection)
            ended.wait(5.0)

    thread = threading.Thread(target=run)
    thread.start()
    yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    ended.set()
    thread.join()
    listener.close()


def opens_a_link(connection: socket.socket) -> None:
    """Go through the handshake as a host does."""
    handshake, reader = HostHandshake(identity("host")), FrameReader()
    while not handshake.is_open:
        for frame in read_frames(reader, connection.recv(1_000)):
            connection.sendall(b"".join(encode(handshake.receive(frame.message))))


def opens_a_link_and_dies(connection: socket.socket) -> None:
    """Hang up as soon as the link is open."""
    opens_a_link(connection)
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def says(*messages: Message) -> Callable[[socket.socket], None]:
    """Say this, whatever the router says."""
    payloads = [memoryview(bytes(16 * isinstance(m, ComputeRequest))) for m in messages]
    data = b"".join(part for pair in zip(messages, payloads, strict=True) for part in encode(*pair))
    return lambda connection: connection.sendall(data)


def test_a_host_that_says_nothing_is_given_up_in_time() -> None:
    with host_that(lambda connection: None) as address:
        began_s = time.monotonic()

        with pytest.raises(LinkTimeout):
            SocketLink(address, identity(), 0.1)

        assert 0.1 <= time.monotonic() - began_s < 1.0


def test_a_host_that_hangs_up_is_a_closed_link() -> None:
    with host_that(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as address:
        with pytest.raises(LinkClosed):
            SocketLink(address, identity(), 1.0)


@pytest.mark.parametrize(
    "message",
    [
        Welcome("impostor"),
        Challenge(PROTOCOL_VERSION, bytes(32), "digest", "float32", bytes(32)),
        Challenge(9, bytes(32), "digest", "float32", bytes(32)),
        Refusal(0, "unauthorised", "no"),
        ComputeRequest(1, 0, "float32", 4, ((0, 1),), 1_000),
    ],
    ids=["no proof", "wrong proof", "version", "refusal", "request"],
)
def test_an_impostor_gets_no_link(message: Message) -> None:
    with host_that(says(message)) as address, pytest.raises(HandshakeError):
        SocketLink(address, identity(), 1.0)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        PREFIX.pack(b"MXRY", PROTOCOL_VERSION + 1, 1, 10, 0, 0),
        PREFIX.pack(b"MXRY", PROTOCOL_VERSION, 6, 10, MAX_PAYLOAD_BYTES, 0),
    ],
    ids=["http", "version", "payload"],
)
def test_a_host_of_another_kind_gets_no_link(data: bytes) -> None:
    with host_that(lambda connection: connection.sendall(data)) as address:
        with pytest.raises(HandshakeError, match=f"{address}: "):
            SocketLink(address, identity(), 1.0)


def test_a_host_that_takes_no_more_bytes_is_a_timeout() -> None:
    with host_that(opens_a_link) as address:
        link = SocketLink(address, identity(), 1.0)
        x_RD = torch.zeros(4_000_000, 4)
        request = ComputeRequest(1, 0, "float32", 4, ((0, len(x_RD)),), 1_000)

        with pytest.raises(LinkTimeout):
            link.send(request, to_bytes(x_RD), 0.1)

        link.close()


def test_a_host_that_dies_is_a_closed_link_on_receiving_and_on_sending() -> None:
    with host_that(opens_a_link_and_dies) as address:
        link = SocketLink(address, identity(), 1.0)
        select.select([link], [], [], 5.0)
        request = ComputeRequest(1, 0, "float32", 4, ((0, 1),), 1_000)

        with pytest.raises(LinkClosed):
            link.receive()
        with pytest.raises(LinkClosed):
            for _ in range(10):
                link.send(request, memoryview(bytes(16)), 1.0)
                time.sleep(0.001)

        link.close()


def test_a_refusal_before_the_host_hangs_up_reaches_the_router_by_its_reason() -> None:
    def refuses(connection: socket.socket) -> None:
        says(Refusal(0, "wrong_model", "another checkpoint"))(connection)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1_000)

    with host_that(refuses) as address:
        with pytest.raises(HandshakeError, match="wrong_model.*another checkpoint"):
            SocketLink(address, identity(), 1.0)


def test_a_reply_before_the_host_dies_is_not_lost() -> None:
    reply = ComputeReply(7, "float32", 1, 1)

    def replies(connection: socket.socket) -> None:
        opens_a_link(connection)
        connection.recv(1_000)
        connection.sendall(b"".join(encode(reply, memoryview(bytes(4)))))
        connection.shutdown(socket.SHUT_WR)

    with host_that(replies) as address:
        link = SocketLink(address, identity(), 1.0)
        link.send(ComputeRequest(7, 0, "float32", 1, ((0, 1),), 1_000), memoryview(bytes(4)), 1.0)
        time.sleep(0.05)

        [frame] = link.receive()

        assert frame.message == reply
        with pytest.raises(LinkClosed, match="hung up"):
            link.receive()
        link.close()


def test_receiving_never_waits() -> None:
    with serving(service_of()) as server:
        link = SocketLink(server.addresses[0], identity(), 1.0)
        began_s = time.monotonic()

        frames = link.receive()

        assert frames == []
        assert time.monotonic() - began_s < 0.05
        link.close()


def test_closing_twice_does_no_harm() -> None:
    with serving(service_of()) as server:
        link = SocketLink(server.addresses[0], identity(), 1.0)

        link.close()
        link.close()

        assert link.fileno() == -1
