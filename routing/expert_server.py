"""The sockets of an expert host: accept routers, read frames, let the service compute, answer.

One thread does everything, with `selectors` and non-blocking sockets. Before each computation it
reads whatever has arrived, so requests of several routers merge without anyone waiting for them.
A peer that misbehaves loses its connection and nothing else.
"""

import logging
import secrets
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from routing.errors import FrameError
from routing.expert_service import ExpertService
from routing.handshake import HostHandshake, Identity
from routing.link import Reply
from routing.messages import BAD_REQUEST, ComputeRequest, Message, Refusal
from routing.socket_link import parse_address, tune
from routing.wire import Frame, FrameReader, encode

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_UNSENT_BYTES = 256 * 2**20
HANDSHAKE_TIMEOUT_S = 5.0
FRAME_TIMEOUT_S = 5.0
SWEEP_PERIOD_S = 1.0


class _Connection:
    """One router. Mutable state: the reader, the bytes not yet sent, the age of what is unfinished.

    `pending_since_s` is when the handshake, or a frame that is not whole yet, began.
    """

    def __init__(self, sock: socket.socket, identity: Identity, now_s: float) -> None:
        self.socket = sock
        self.reader = FrameReader()
        self.handshake = HostHandshake(identity)
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.pending_since_s: float | None = now_s
        self.is_refused = False

    def queue(self, message: Message, payload: memoryview | None) -> None:
        for part in encode(message, payload):
            if len(part):
                self.unsent.append(memoryview(part))
                self.unsent_bytes += len(part)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        while self.unsent:
            try:
                count = self.socket.send(self.unsent[0])
            except BlockingIOError:
                return
            self.unsent_bytes -= count
            if count == len(self.unsent[0]):
                self.unsent.popleft()
            else:
                self.unsent[0] = self.unsent[0][count:]

    def read(self) -> list[Frame]:
        """Read what has arrived.

        Raises:
            ConnectionError: the router hung up.
            FrameError: what came is not a frame.
        """
        frames: list[Frame] = []
        while True:
            try:
                count = self.socket.recv_into(self.reader.buffer())
            except BlockingIOError:
                return frames
            if count == 0:
                raise ConnectionError("the router hung up")
            frame = self.reader.received(count)
            if frame is not None:
                frames.append(frame)


class ExpertServer:
    """Serves `service` at `addresses`, once started; port 0 takes any free port.

    Attributes:
        addresses: where it really listens.
        num_refused: connections closed for what they sent, or for what they did not.
    """

    def __init__(
        self, service: ExpertService, identity: Identity, addresses: Sequence[str]
    ) -> None:
        self.identity = identity
        self.num_refused = 0
        self._service = service
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        self._wake_up, self._wake = socket.socketpair()
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        self._listeners = [_listen(address) for address in addresses]
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self.addresses = tuple(_address_of(listener) for listener in self._listeners)
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
        """End the thread and close every socket."""
        self._wake.send(b"\0")
        self._thread.join()

    def _run(self) -> None:
        is_running = True
        while is_running:
            timeout_s = 0.0 if not self._service.is_idle else SWEEP_PERIOD_S
            for key, events in self._selector.select(timeout_s):
                if key.fileobj is self._wake_up:
                    is_running = False
                elif key.data is None:
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                else:
                    self._serve(key.data, events)
            self._service.step()
            self._sweep()
        self._close_all()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self.num_refused += 1
            sock.close()
            return
        sock.setblocking(False)
        tune(sock)
        connection = _Connection(sock, self.identity, time.monotonic())
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                for frame in connection.read():
                    self._handle(connection, frame)
            self._flush(connection)
        except FrameError as error:
            self._refuse(connection, str(error))
        except OSError:
            self._close(connection)

    def _handle(self, connection: _Connection, frame: Frame) -> None:
        if not connection.handshake.is_open:
            answer = connection.handshake.receive(frame.message)
            connection.queue(answer, None)
            connection.is_refused = isinstance(answer, Refusal)
            if isinstance(answer, Refusal):
                raise FrameError(answer.detail)
        elif isinstance(frame.message, ComputeRequest):

            def answer_to(reply: Reply, payload: memoryview | None) -> None:
                self._answer(connection, reply, payload)

            self._service.submit(frame.message, frame.payload, answer_to)
        else:
            raise FrameError(f"{type(frame.message).__name__} is not a request")

    def _answer(self, connection: _Connection, reply: Reply, payload: memoryview | None) -> None:
        """Queue a reply; whoever has hung up meanwhile gets none."""
        if connection.socket.fileno() < 0:
            return
        connection.queue(reply, payload)
        try:
            self._flush(connection)
        except OSError:
            self._close(connection)

    def _flush(self, connection: _Connection) -> None:
        connection.flush()
        if connection.unsent_bytes > MAX_UNSENT_BYTES:
            raise FrameError("the router does not read its replies")
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection.socket, wanted, connection)
        is_whole = connection.handshake.is_open and connection.reader.is_idle
        if is_whole:
            connection.pending_since_s = None
        elif connection.pending_since_s is None:
            connection.pending_since_s = time.monotonic()

    def _refuse(self, connection: _Connection, reason: str) -> None:
        """Say why if the router can hear it, and hang up."""
        logger.warning("connection refused: %s", reason)
        self.num_refused += 1
        try:
            if not connection.is_refused:
                connection.queue(Refusal(0, BAD_REQUEST, reason[:200]), None)
            connection.flush()
        except OSError:
            pass
        self._close(connection)

    def _sweep(self) -> None:
        """Close connections whose handshake or frame takes too long."""
        now_s = time.monotonic()
        for connection in list(self._connections.values()):
            limit_s = FRAME_TIMEOUT_S if connection.handshake.is_open else HANDSHAKE_TIMEOUT_S
            since_s = connection.pending_since_s
            if since_s is not None and now_s - since_s > limit_s:
                self._refuse(connection, "not finished in time")

    def _close(self, connection: _Connection) -> None:
        if connection.socket.fileno() >= 0:
            del self._connections[connection.socket.fileno()]
            self._selector.unregister(connection.socket)
            connection.socket.close()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        for sock in (*self._listeners, self._wake_up, self._wake):
            sock.close()
        self._selector.close()


def local_addresses(node_ip: str) -> list[str]:
    """Where a host listens: its node's own address and, on Linux, AF_UNIX for its own node."""
    unix = [f"unix:mixray-{secrets.token_hex(8)}"] if sys.platform == "linux" else []
    return [*unix, f"tcp:{node_ip}:0"]


def _listen(address: str) -> socket.socket:
    family, target = parse_address(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(target)
    listener.listen(MAX_CONNECTIONS)
    listener.setblocking(False)
    return listener


def _address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name[1:].decode()}"
    return f"tcp:{name[0]}:{name[1]}"
