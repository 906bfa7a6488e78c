"""The other end of a socket, as bare as a test of bad manners needs it."""

import select
import socket
import time

from routing.handshake import RouterHandshake
from routing.messages import ComputeRequest, Message
from routing.socket_link import parse_address
from routing.wire import Frame, FrameReader, encode
from tests.routing.hosts import DIM, identity

PATIENCE_S = 5.0


class Peer:
    """A router that does what it is told, byte by byte; closed at the end of a `with` block."""

    def __init__(self, address: str, receive_buffer_bytes: int | None = None) -> None:
        family, target = parse_address(address)
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(target)
        self._reader = FrameReader()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send a frame."""
        self.send_bytes(b"".join(encode(message, memoryview(payload))))

    def send_bytes(self, data: bytes) -> None:
        """Send anything."""
        self.socket.sendall(data)

    def receive(self) -> Frame:
        """Wait for a frame."""
        while True:
            count = self.socket.recv_into(self._reader.buffer())
            assert count, "the host hung up"
            frame = self._reader.received(count)
            if frame is not None:
                return frame

    def shake_hands(self) -> None:
        """Open the link."""
        handshake = RouterHandshake(identity("router"))
        answer: Message | None = handshake.hello()
        while answer is not None:
            self.send(answer)
            answer = handshake.receive(self.receive().message)

    def ask(self, seq: int, num_rows: int = 1) -> None:
        """Ask expert 0 of layer 0 for rows of ones."""
        request = ComputeRequest(seq, 0, "float32", DIM, ((0, num_rows),), 60_000)
        self.send(request, b"\x00\x00\x80\x3f" * (DIM * num_rows))

    def last_words(self) -> bytes:
        """Wait until the host hangs up; what it said before."""
        said = b""
        while True:
            try:
                data = self.socket.recv(65_536)
            except ConnectionError:
                return said
            if not data:
                return said
            said += data

    def hangs_up_after_s(self) -> float:
        """Wait until the host hangs up; how long that took."""
        began_s = time.monotonic()
        self.last_words()
        return time.monotonic() - began_s

    def is_connected(self) -> bool:
        """Whether the host has neither spoken nor hung up so far."""
        return not select.select([self.socket], [], [], 0)[0]

    def reset(self) -> None:
        """Hang up with a TCP reset."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.socket.close()
