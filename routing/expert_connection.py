"""The host's end of one router's connection: bytes in, frames out, and how long that takes.

It never blocks and decides nothing; `routing.expert_server` does.
"""

import socket
import time
from collections.abc import Iterator

from routing.handshake import HostHandshake, Identity
from routing.messages import Message
from routing.socket_link import without
from routing.wire import Frame, FrameReader, encode

READS_PER_TURN = 64
PARTS_PER_SEND = 64
PROGRESS_BYTES = 65_536


class Connection:
    """One router.

    Mutable state: the reader, the bytes not yet sent, and `pending_since_s`, when the handshake, or
    the frame that is not whole yet, last moved on.
    """

    def __init__(self, sock: socket.socket, identity: Identity, now_s: float) -> None:
        self.socket = sock
        self.reader = FrameReader(max_payload_bytes=0)  # a stranger sends no payload
        self.handshake = HostHandshake(identity)
        self.unsent: list[memoryview] = []
        self.unsent_bytes = 0
        self.pending_since_s: float | None = now_s
        self.is_closed = False
        self._fresh_bytes = 0

    def take_payloads(self) -> None:
        """Accept frames of every size, now that the handshake is over."""
        self.reader = FrameReader()

    def queue(self, message: Message, payload: memoryview | None) -> None:
        """Take a message to be sent by `flush`."""
        parts = [memoryview(part) for part in encode(message, payload) if len(part)]
        self.unsent += parts
        self.unsent_bytes += sum(map(len, parts))

    def flush(self) -> None:
        """Send as much as the socket takes."""
        while self.unsent:
            try:
                count = self.socket.sendmsg(self.unsent[:PARTS_PER_SEND])
            except BlockingIOError:
                return
            self.unsent_bytes -= count
            self.unsent = without(self.unsent, count)

    def frames(self) -> Iterator[Frame]:
        """Read what has arrived, up to a turn's worth.

        Raises:
            ConnectionError: the router hung up.
            FrameError: what came is not a frame.
        """
        for _ in range(READS_PER_TURN):
            try:
                count = self.socket.recv_into(self.reader.buffer())
            except BlockingIOError:
                return
            if count == 0:
                raise ConnectionError("the router hung up")
            frame = self.reader.received(count)
            self._fresh_bytes += count
            if self.handshake.is_open and (frame or self._fresh_bytes >= PROGRESS_BYTES):
                self._fresh_bytes = 0
                self.pending_since_s = None
            if frame is not None:
                yield frame

    def note_age(self) -> None:
        """Begin to count the age of what is unfinished, or stop."""
        if self.handshake.is_open and self.reader.is_idle:
            self.pending_since_s = None
        elif self.pending_since_s is None:
            self.pending_since_s = time.monotonic()
