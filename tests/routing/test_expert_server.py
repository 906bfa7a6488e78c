"""The host's sockets: whatever one peer does, the others are answered and nothing is left over."""

import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from routing.errors import HandshakeError, LinkClosed, LinkError
from routing.expert_server import ExpertServer, ServerLimits, local_addresses
from routing.expert_service import ExpertService
from routing.messages import (
    BAD_REQUEST,
    UNAUTHORISED,
    ComputeReply,
    ComputeRequest,
    Hello,
    Refusal,
    Welcome,
)
from routing.socket_link import SocketLink
from routing.tensors import from_bytes, to_bytes
from routing.wire import MAX_PAYLOAD_BYTES, PREFIX, Frame, FrameReader, encode
from tests.faults import read_frames
from tests.routing.conftest import open_descriptors
from tests.routing.hosts import DIM, identity, service_of, serving, times_expert
from tests.routing.peers import Peer

TCP = "tcp:127.0.0.1:0"
UNIX = f"unix:mixray-test-{os.getpid()}"
SHORT = ServerLimits(handshake_timeout_s=0.15, frame_timeout_s=0.15)


@pytest.fixture
def server() -> Iterator[ExpertServer]:
    with serving(service_of()) as server:
        yield server


def link_to(server: ExpertServer, address: int = 0) -> SocketLink:
    """An open link."""
    return SocketLink(server.addresses[address], identity("router"), 5.0)


def wait_for(link: SocketLink, num_frames: int = 1) -> list[Frame]:
    """Wait for replies."""
    frames: list[Frame] = []
    while len(frames) < num_frames:
        assert select.select([link], [], [], 5.0)[0], "the host does not answer"
        frames += link.receive()
    return frames


def ask(link: SocketLink, seq: int, x_RD: Tensor, expert_id: int = 0) -> None:
    """Send rows to an expert of layer 0."""
    rows = ((expert_id, len(x_RD)),)
    request = ComputeRequest(seq, 0, "float32", x_RD.shape[1], rows, 60_000)
    link.send(request, to_bytes(x_RD), 5.0)


def check_answers(link: SocketLink) -> None:
    """One more round trip."""
    ask(link, 99, torch.ones(2, DIM), expert_id=3)
    [frame] = wait_for(link)
    assert frame.message == ComputeReply(99, "float32", DIM, 2)
    assert from_bytes(frame.payload, "float32", DIM).equal(torch.full((2, DIM), 4.0))


def until(is_true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something has happened in the server's thread."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


@pytest.mark.parametrize("address", [TCP, UNIX], ids=["tcp", "unix"])
def test_rows_make_the_round_trip(address: str) -> None:
    with serving(service_of(), [address]) as server:
        link = link_to(server)

        check_answers(link)

        link.close()


def test_a_host_listens_at_every_address_it_was_given_and_at_no_other() -> None:
    with serving(service_of(), [UNIX, TCP]) as server:
        links = [link_to(server, 0), link_to(server, 1)]

        for link in links:
            check_answers(link)
            link.close()

        assert server.addresses[0] == UNIX
        assert server.addresses[1].startswith("tcp:127.0.0.1:")
        port = int(server.addresses[1].rpartition(":")[2])
        with pytest.raises(LinkClosed):
            SocketLink(f"tcp:127.0.0.2:{port}", identity(), 1.0)


def test_a_host_offers_its_own_address_and_a_name_on_its_node() -> None:
    addresses = local_addresses("10.0.0.7")

    assert addresses[-1] == "tcp:10.0.0.7:0"
    assert addresses != local_addresses("10.0.0.7")


@pytest.mark.parametrize("address", [TCP, UNIX], ids=["tcp", "unix"])
def test_large_frames_in_both_directions_at_once_do_not_lock_up(address: str) -> None:
    dim = 1_024
    x_RD = torch.randn(1_024, dim)
    with serving(service_of(dim=dim), [address]) as server:
        link = link_to(server)

        for seq in range(6):
            ask(link, seq, x_RD, expert_id=seq)
        frames = wait_for(link, 6)

        for frame in frames:
            y_RD = from_bytes(frame.payload, "float32", dim)
            assert isinstance(frame.message, ComputeReply)
            assert y_RD.equal(x_RD * (frame.message.seq + 1))
        link.close()


def test_requests_of_two_routers_that_wait_together_are_merged() -> None:
    began, go_on = threading.Event(), threading.Event()

    def compute(layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]) -> Tensor:
        began.set()
        assert go_on.wait(5.0)
        return times_expert(layer, x_RD, slices)

    service = service_of(compute)
    with serving(service) as server:
        links = [link_to(server) for _ in range(3)]
        ask(links[0], 1, torch.ones(1, DIM))
        assert began.wait(5.0)

        for link in links[1:]:
            ask(link, 1, torch.ones(1, DIM))
        go_on.set()
        for link in links:
            wait_for(link)
            link.close()

    assert (service.num_calls, service.num_merged) == (3, 1)


def handshake_error(server: ExpertServer, **changes: object) -> str:
    """Why a link is refused."""
    with pytest.raises(HandshakeError) as caught:
        SocketLink(server.addresses[0], replace(identity(), **changes), 5.0)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_router_with_another_key_checkpoint_or_dtype_gets_no_link(server: ExpertServer) -> None:
    good = link_to(server)

    assert "cluster key" in handshake_error(server, key=b"another")
    assert "checkpoint" in handshake_error(server, digest="another")
    assert "dtype" in handshake_error(server, dtype="float16")

    check_answers(good)
    good.close()


def test_a_new_key_counts_for_the_next_connection(server: ExpertServer) -> None:
    server.identity = identity("host", key=b"new key")

    link = SocketLink(server.addresses[0], identity(key=b"new key"), 5.0)

    check_answers(link)
    link.close()


def good_request() -> bytes:
    """A request frame of one row."""
    request = ComputeRequest(1, 0, "float32", DIM, ((0, 1),), 1_000)
    return b"".join(encode(request, memoryview(bytes(4 * DIM))))


def flipped(data: bytes) -> bytes:
    """The bytes with one bit of the last one flipped."""
    return data[:-1] + bytes([data[-1] ^ 1])


HOSTILE = {
    "http": b"GET / HTTP/1.1\r\nHost: host\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "zeros": bytes(4_096),
    "version": PREFIX.pack(b"MXRY", 2, 1, 10, 0, 0),
    "kind": PREFIX.pack(b"MXRY", 1, 99, 10, 0, 0),
    "huge": PREFIX.pack(b"MXRY", 1, 5, 65_535, 2**32 - 1, 0),
    "bit flip": flipped(good_request()),
    "reply": b"".join(encode(ComputeReply(1, "float32", 1, 1), memoryview(bytes(4)))),
    "second hello": b"".join(encode(Hello(1, bytes(32)))) * 2,
    "welcome": b"".join(encode(Welcome("host"))),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("is_known", [False, True], ids=["stranger", "router"])
def test_hostile_bytes_close_their_own_connection_and_no_other(
    server: ExpertServer, data: bytes, is_known: bool
) -> None:
    good = link_to(server)
    with Peer(server.addresses[0]) as peer:
        if is_known:
            peer.shake_hands()

        peer.send_bytes(data)
        peer.last_words()

        check_answers(good)
        assert server.num_refused == 1
        assert server.num_connections == 1
    good.close()


def test_a_peer_hears_why_it_is_refused(server: ExpertServer) -> None:
    with Peer(server.addresses[0]) as peer:
        peer.send(Hello(200, bytes(32)))

        [frame] = read_frames(FrameReader(), peer.last_words())

    assert frame.message == Refusal(0, "wrong_version", "protocol version: got 200, want 1")


def test_a_peer_of_another_protocol_version_hears_both_numbers(server: ExpertServer) -> None:
    with Peer(server.addresses[0]) as peer:
        peer.send_bytes(PREFIX.pack(b"MXRY", 9, 1, 10, 0, 0))

        [frame] = read_frames(FrameReader(), peer.last_words())

    assert frame.message == Refusal(0, BAD_REQUEST, "protocol version: got 9, want 1")


def test_a_request_before_the_handshake_is_refused(server: ExpertServer) -> None:
    with Peer(server.addresses[0]) as peer:
        peer.send(Refusal(1, "code", "detail"))

        [frame] = read_frames(FrameReader(), peer.last_words())

    assert frame.message == Refusal(0, UNAUTHORISED, "Refusal out of turn")


def test_a_stranger_cannot_make_the_host_take_a_payload(server: ExpertServer) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peers = [Peer(server.addresses[0]) for _ in range(16)]

    for peer in peers:
        peer.send_bytes(PREFIX.pack(b"MXRY", 1, 5, 100, MAX_PAYLOAD_BYTES, 0) + bytes(1_000))
        peer.last_words()
        peer.socket.close()

    assert server.num_refused == 16
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32_000


@pytest.mark.parametrize("is_known", [False, True], ids=["stranger", "router"])
def test_a_frame_that_stops_half_way_is_given_up(is_known: bool) -> None:
    with serving(service_of(), limits=SHORT) as server, Peer(server.addresses[0]) as peer:
        if is_known:
            peer.shake_hands()
        peer.send_bytes(good_request()[:20] if is_known else b"MXRY")

        waited_s = peer.hangs_up_after_s()

        assert 0.1 < waited_s < 2.0
        assert server.num_refused == 1


def test_a_frame_that_comes_byte_by_byte_is_given_up() -> None:
    with serving(service_of(), limits=SHORT) as server, Peer(server.addresses[0]) as peer:
        peer.shake_hands()
        began_s = time.monotonic()

        with pytest.raises(ConnectionError):
            for byte in good_request() * 100:
                peer.send_bytes(bytes([byte]))
                time.sleep(0.02)

        assert time.monotonic() - began_s < 2.0


def test_a_large_frame_that_moves_on_may_take_longer_than_a_small_one() -> None:
    limits = replace(SHORT, handshake_timeout_s=5.0)
    with serving(service_of(dim=65_536), limits=limits) as server:
        with Peer(server.addresses[0]) as peer:
            peer.shake_hands()
            request = ComputeRequest(1, 0, "float32", 65_536, ((0, 2),), 60_000)
            data = b"".join(encode(request, memoryview(bytes(2 * 4 * 65_536))))

            for first in range(0, len(data), 66_000):
                time.sleep(0.06)
                peer.send_bytes(data[first : first + 66_000])

            assert peer.receive().message == ComputeReply(1, "float32", 65_536, 2)


def test_a_router_is_not_blamed_for_the_time_that_a_computation_takes() -> None:
    began, go_on = threading.Event(), threading.Event()

    def compute(layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]) -> Tensor:
        began.set()
        assert go_on.wait(5.0)
        return times_expert(layer, x_RD, slices)

    with serving(service_of(compute), limits=SHORT) as server:
        link = link_to(server)
        with Peer(server.addresses[0]) as peer:
            peer.shake_hands()
            peer.send_bytes(good_request()[:20])
            until(lambda: server.num_connections == 2)
            ask(link, 1, torch.ones(1, DIM))
            assert began.wait(5.0)
            time.sleep(0.3)

            peer.send_bytes(good_request()[20:])
            go_on.set()

            assert peer.receive().message == ComputeReply(1, "float32", DIM, 1)
        wait_for(link)
        link.close()


def test_connections_that_never_say_hello_are_closed() -> None:
    with serving(service_of(), limits=SHORT) as server:
        peers = [Peer(server.addresses[0]) for _ in range(20)]

        for peer in peers:
            assert peer.hangs_up_after_s() < 2.0
            peer.socket.close()

        assert server.num_connections == 0


def test_an_open_link_may_be_silent_for_as_long_as_it_likes() -> None:
    with serving(service_of(), limits=SHORT) as server:
        link = link_to(server)

        time.sleep(0.4)

        check_answers(link)
        link.close()


def test_connections_over_the_limit_are_refused_until_there_is_room() -> None:
    with serving(service_of(), limits=ServerLimits(max_connections=3)) as server:
        links = [link_to(server) for _ in range(3)]

        for _ in range(5):
            with pytest.raises(LinkError):
                link_to(server)
        links.pop().close()
        until(lambda: server.num_connections == 2)
        links.append(link_to(server))

        assert server.num_refused == 5
        for link in links:
            check_answers(link)
            link.close()


@pytest.mark.parametrize("address", [TCP, UNIX], ids=["tcp", "unix"])
def test_a_router_that_never_reads_its_replies_is_cut_off(address: str) -> None:
    limits = ServerLimits(max_unsent_bytes=200_000)
    with serving(service_of(), [address], limits) as server:
        good = link_to(server)
        with Peer(server.addresses[0], receive_buffer_bytes=4_096) as peer:
            peer.shake_hands()

            with pytest.raises(ConnectionError):
                for seq in range(1_000):
                    peer.ask(seq, num_rows=4_096)

        until(lambda: server.num_connections == 1)
        check_answers(good)
        assert server.is_alive
        good.close()


def test_a_router_that_hangs_up_after_its_request_disturbs_nobody(server: ExpertServer) -> None:
    good = link_to(server)
    with Peer(server.addresses[0]) as peer:
        peer.shake_hands()
        peer.ask(1)
        peer.socket.shutdown(socket.SHUT_WR)

        peer.last_words()

    check_answers(good)
    assert server.num_connections == 1
    good.close()


def test_a_reset_in_the_middle_of_a_reply_disturbs_nobody(server: ExpertServer) -> None:
    good = link_to(server)
    peer = Peer(server.addresses[0], receive_buffer_bytes=4_096)
    peer.shake_hands()
    peer.ask(1, num_rows=100_000)
    peer.socket.recv(1_000)

    peer.reset()

    until(lambda: server.num_connections == 1)
    check_answers(good)
    good.close()


def test_an_error_of_ours_on_one_connection_ends_that_connection_only() -> None:
    class Broken(ExpertService):
        def submit(self, request: ComputeRequest, *rest: object) -> None:
            if request.seq == 13:
                raise ZeroDivisionError
            super().submit(request, *rest)  # type: ignore[arg-type]

    healthy = service_of()
    service = Broken(healthy._spec, time.monotonic)
    with serving(service) as server:
        good = link_to(server)
        with Peer(server.addresses[0]) as peer:
            peer.shake_hands()
            peer.ask(13)

            peer.last_words()

        check_answers(good)
        good.close()


def test_a_stopped_server_leaves_no_socket_and_no_thread() -> None:
    before, num_threads = open_descriptors(), threading.active_count()
    server = ExpertServer(service_of(), identity("host"), [TCP, UNIX])
    server.start()
    links = [link_to(server, number % 2) for number in range(4)]

    server.stop()

    for link in links:
        with pytest.raises(LinkClosed):
            link.receive()
        link.close()
    assert not server.is_alive
    assert open_descriptors() == before
    assert threading.active_count() == num_threads


def test_a_server_may_be_stopped_twice_and_before_it_was_started() -> None:
    server = ExpertServer(service_of(), identity("host"), [TCP])

    server.stop()
    server.stop()

    assert not server.is_alive


def test_an_address_that_is_taken_leaves_no_socket_behind(server: ExpertServer) -> None:
    before = open_descriptors()

    with pytest.raises(OSError, match="Address already in use"):
        ExpertServer(service_of(), identity("host"), [TCP, server.addresses[0]])

    assert open_descriptors() == before


def test_an_idle_server_sleeps(server: ExpertServer) -> None:
    link = link_to(server)
    check_answers(link)
    before_s = time.process_time()

    time.sleep(0.3)

    assert time.process_time() - before_s < 0.05
    link.close()
