"""A link over AF_UNIX (one node) or TCP (across nodes).

Addresses are text: `unix:NAME` in Linux' abstract namespace, which leaves no file behind, and
`tcp:HOST:PORT`.
"""

import select
import socket
import time

from routing.errors import FrameError, HandshakeError, LinkClosed, LinkError, LinkTimeout
from routing.handshake import Identity, RouterHandshake
from routing.messages import ComputeRequest, Message
from routing.wire import Frame, FrameReader, encode


class SocketLink:
    """The router's end of a connection; open once the constructor returns.

    Raises:
        LinkClosed: nobody listens at the address, or the host hung up.
        LinkTimeout: the host did not complete the handshake in time.
        HandshakeError: the host is not one of this cluster's, or serves something else.
    """

    def __init__(self, address: str, identity: Identity, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        self._reader = FrameReader(max_payload_bytes=0)  # a stranger sends no payload
        self._socket = _connect(address, timeout_s)
        try:
            self._shake_hands(RouterHandshake(identity), deadline_s)
            self._reader = FrameReader()
        except FrameError as error:
            self.close()
            raise HandshakeError(f"{address}: {error}") from error
        except LinkError:
            self.close()
            raise

    def send(self, request: ComputeRequest, payload: memoryview, timeout_s: float) -> None:
        self._send(request, payload, time.monotonic() + timeout_s)

    def receive(self) -> list[Frame]:
        frames: list[Frame] = []
        while True:
            try:
                count = self._socket.recv_into(self._reader.buffer())
                if count == 0:
                    raise ConnectionError("the host hung up")
            except BlockingIOError:
                return frames
            except OSError as error:
                if frames:  # what came before the end counts; the next call meets the end again
                    return frames
                raise LinkClosed(str(error)) from error
            frame = self._reader.received(count)
            if frame is not None:
                frames.append(frame)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _shake_hands(self, handshake: RouterHandshake, deadline_s: float) -> None:
        answer: Message | None = handshake.hello()
        while answer is not None:
            self._send(answer, None, deadline_s)
            answer = handshake.receive(self._receive_one(deadline_s))

    def _receive_one(self, deadline_s: float) -> Message:
        while True:
            self._wait(select.POLLIN, deadline_s)
            frames = self.receive()
            if frames:
                return frames[0].message

    def _send(self, message: Message, payload: memoryview | None, deadline_s: float) -> None:
        parts = [memoryview(part) for part in encode(message, payload) if len(part)]
        while parts:
            try:
                parts = without(parts, self._socket.sendmsg(parts))
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline_s)
            except OSError as error:
                raise LinkClosed(str(error)) from error

    def _wait(self, event: int, deadline_s: float) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0 or not poll.poll(remaining_s * 1000):
            raise LinkTimeout("the host neither takes nor gives bytes in time")


def parse_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """Split an address into what `socket` wants.

    Raises:
        LinkError: the address has neither form.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return socket.AF_UNIX, "\0" + rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdecimal() and int(port) < 65_536:
        return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))
    raise LinkError(f"address {address!r}: want unix:NAME or tcp:HOST:PORT")


def tune(connection: socket.socket) -> None:
    """Send small frames at once, and notice a peer whose node is gone; only TCP needs telling."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _connect(address: str, timeout_s: float) -> socket.socket:
    family, target = parse_address(address)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(target)
        connection.setblocking(False)
        tune(connection)
    except TimeoutError as error:
        connection.close()
        raise LinkTimeout(f"{address}: no connection in {timeout_s} s") from error
    except OSError as error:
        connection.close()
        raise LinkClosed(f"{address}: {error}") from error
    return connection


def without(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `parts` after their first `count` bytes."""
    while parts and count >= len(parts[0]):
        count -= len(parts[0])
        parts = parts[1:]
    return [parts[0][count:], *parts[1:]] if parts else []
