"""The sockets of an expert host: accept routers, read frames, let the service compute, answer.

One thread does everything, with `selectors` and non-blocking sockets. Before each computation it
reads whatever has arrived, so requests of several routers merge without anyone waiting for them.
A peer that misbehaves loses its connection and nothing else.
"""

import contextlib
import logging
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from routing.errors import FrameError
from routing.expert_connection import Connection
from routing.expert_service import ExpertService
from routing.handshake import Identity
from routing.link import Reply
from routing.messages import BAD_REQUEST, ComputeRequest, Message, Refusal
from routing.socket_link import parse_address, tune
from routing.wire import Frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """What a host puts up with.

    Attributes:
        max_connections: one more is closed at once.
        max_unsent_bytes: replies that a router may leave unread.
        handshake_timeout_s: from connecting to the end of the handshake.
        frame_timeout_s: for a frame, or for each further 64 KiB of a large one.
    """

    max_connections: int = 256
    max_unsent_bytes: int = 256 * 2**20
    handshake_timeout_s: float = 5.0
    frame_timeout_s: float = 5.0

    @property
    def sweep_period_s(self) -> float:
        """How often to look for connections past their time."""
        return min(self.handshake_timeout_s, self.frame_timeout_s) / 5


class ExpertServer:
    """Serves `service` at `addresses`, once started; port 0 takes any free port.

    Attributes:
        addresses: where it really listens.
        num_refused: connections closed for what they sent, or for what they did not.
    """

    def __init__(
        self,
        service: ExpertService,
        identity: Identity,
        addresses: Sequence[str],
        limits: ServerLimits | None = None,
    ) -> None:
        self.identity = identity
        self.num_refused = 0
        self._service = service
        self._limits = limits or ServerLimits()
        self._sweep_at_s = 0.0
        self._connections: set[Connection] = set()
        self._listeners = listen(addresses, self._limits.max_connections)
        self.addresses = tuple(address_of(listener) for listener in self._listeners)
        self._selector = selectors.DefaultSelector()
        self._wake_up, self._wake = socket.socketpair()
        for sock in (self._wake_up, *self._listeners):
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="expert-server", daemon=True)

    @property
    def num_connections(self) -> int:
        """Routers connected at this moment, handshakes included."""
        return len(self._connections)

    @property
    def is_alive(self) -> bool:
        """Whether the serving thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to serve, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close every socket; stopping twice does no harm."""
        if self.is_alive:
            self._wake.send(b"\0")
            self._thread.join()
        for connection in list(self._connections):
            self._close(connection)
        for sock in (*self._listeners, self._wake_up, self._wake):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            timeout_s = self._limits.sweep_period_s if self._service.is_idle else 0.0
            for key, events in self._selector.select(timeout_s):
                if key.fileobj is self._wake_up:
                    return
                if key.data is None:
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                else:
                    self._serve(key.data, events)
            # Before the computation: however long that takes, it is no peer's fault.
            self._sweep()
            self._service.step()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if len(self._connections) >= self._limits.max_connections:
            self.num_refused += 1
            sock.close()
            return
        try:
            sock.setblocking(False)
            tune(sock)
        except OSError:
            sock.close()
            return
        connection = Connection(sock, self.identity, time.monotonic())
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _serve(self, connection: Connection, events: int) -> None:
        """Read, handle and send; whatever goes wrong ends this connection and nothing else."""
        try:
            if events & selectors.EVENT_READ:
                for frame in connection.frames():
                    self._handle(connection, frame)
        except FrameError as error:
            self._refuse(connection, Refusal(0, BAD_REQUEST, str(error)[:200]))
        except OSError:
            self._close(connection)
        except Exception:
            logger.exception("a connection failed")
            self._close(connection)
        self._flush(connection)
        connection.note_age()

    def _handle(self, connection: Connection, frame: Frame) -> None:
        if not connection.handshake.is_open:
            self._shake_hands(connection, frame.message)
        elif isinstance(frame.message, ComputeRequest):

            def answer(reply: Reply, payload: memoryview | None) -> None:
                if not connection.is_closed:
                    connection.queue(reply, payload)
                    self._flush(connection)

            self._service.submit(frame.message, frame.payload, answer)
        else:
            raise FrameError(f"{type(frame.message).__name__} is not a request")

    def _shake_hands(self, connection: Connection, message: Message) -> None:
        answer = connection.handshake.receive(message)
        if isinstance(answer, Refusal):
            self._refuse(connection, answer)
            return
        connection.queue(answer, None)
        if connection.handshake.is_open:
            connection.take_payloads()

    def _flush(self, connection: Connection) -> None:
        """Send what the socket takes; a router that hung up or reads nothing is cut off."""
        if connection.is_closed:
            return
        try:
            connection.flush()
        except OSError:
            self._close(connection)
            return
        if connection.unsent_bytes > self._limits.max_unsent_bytes:
            self._refuse(connection, Refusal(0, BAD_REQUEST, "the replies are not read"))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection.socket, wanted, connection)

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        """Say why if the router can hear it, and hang up."""
        logger.warning("connection refused: %s", refusal.detail)
        self.num_refused += 1
        connection.queue(refusal, None)
        with contextlib.suppress(OSError):
            connection.flush()
        self._close(connection)

    def _sweep(self) -> None:
        """Close connections whose handshake or frame takes too long."""
        now_s = time.monotonic()
        if now_s < self._sweep_at_s:
            return
        self._sweep_at_s = now_s + self._limits.sweep_period_s
        for connection in list(self._connections):
            is_open, since_s = connection.handshake.is_open, connection.pending_since_s
            limit_s = self._limits.frame_timeout_s if is_open else self._limits.handshake_timeout_s
            if since_s is not None and now_s - since_s > limit_s:
                self._refuse(connection, Refusal(0, BAD_REQUEST, "not finished in time"))

    def _close(self, connection: Connection) -> None:
        if not connection.is_closed:
            connection.is_closed = True
            self._connections.remove(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()


def local_addresses(node_ip: str) -> list[str]:
    """Where a host listens: its node's own address and, on Linux, AF_UNIX for its own node."""
    unix = [f"unix:mixray-{secrets.token_hex(8)}"] if sys.platform == "linux" else []
    return [*unix, f"tcp:{node_ip}:0"]


def listen(addresses: Sequence[str], backlog: int) -> list[socket.socket]:
    """Listen at every address, or at none of them; port 0 takes any free port."""
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            family, target = parse_address(address)
            listeners.append(socket.socket(family, socket.SOCK_STREAM))
            listeners[-1].bind(target)
            listeners[-1].listen(backlog)
            listeners[-1].setblocking(False)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def address_of(listener: socket.socket) -> str:
    """Where a socket really listens."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name[1:].decode()}"
    return f"tcp:{name[0]}:{name[1]}"
