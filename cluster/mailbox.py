"""Where the tokens of an ingress's requests arrive on the way, from whichever router.

Routers connect and send one frame for each of their steps. It is only about when tokens come: the
answer of the router's call, which Ray carries, brings all of them once more. A router that
misbehaves loses its connection and nothing else.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from cluster.engine.request import TokenEvent
from cluster.token_frames import TokenBatch
from cluster.token_link import MailboxAddress, accept, read_frame
from routing.errors import FrameError, HandshakeError, LinkClosed
from routing.expert_server import address_of, listen
from routing.socket_link import tune

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
HANDSHAKE_TIMEOUT_S = 5.0


class Arrivals:
    """The tokens of one request: each once and in order, whichever way brings it first.

    Mutable state: the tokens not yet given, how many there were in all, and how it ended.
    """

    def __init__(self) -> None:
        self._fresh: list[TokenEvent] = []
        self._num_taken = 0
        self._error: Exception | None = None
        self._is_over = False
        self._has_news = asyncio.Event()
        self.is_finished = False

    def take(self, first: int, events: Sequence[TokenEvent]) -> None:
        """Take tokens, the first of which is the request's number `first`.

        Those known already are passed over; so are those after a gap, which come again with the
        answer.
        """
        if self.is_finished or first > self._num_taken:
            return
        new = events[self._num_taken - first :]
        if new:
            self._fresh += new
            self._num_taken += len(new)
            self.is_finished = new[-1].finish_reason is not None
            self._has_news.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; an error counts only if the last token has not come."""
        self._is_over = True
        self._error = error
        self._has_news.set()

    async def batch(self) -> list[TokenEvent]:
        """Wait for tokens that were not given yet; none is the end.

        Raises:
            Exception: what ended the request, once all tokens before it were given.
        """
        while not (self._fresh or self.is_finished or self._is_over):
            self._has_news.clear()
            await self._has_news.wait()
        if not self._fresh and not self.is_finished and self._error is not None:
            raise self._error
        batch, self._fresh = self._fresh, []
        return batch


class Mailbox:
    """Listens at `addresses` from when it is made, inside a running event loop, until `close`.

    Attributes:
        address: what routers need to know.
    """

    def __init__(self, node_id: str, addresses: Sequence[str]) -> None:
        self._listeners = listen(addresses, MAX_CONNECTIONS)
        where = tuple(address_of(listener) for listener in self._listeners)
        self.address = MailboxAddress(node_id, where, secrets.token_bytes(32))
        self._arrivals: dict[str, Arrivals] = {}
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._servers: list[asyncio.Server] = []
        self._starting = asyncio.get_running_loop().create_task(self._start())

    @property
    def num_connections(self) -> int:
        """Routers connected at this moment, handshakes included."""
        return len(self._connections)

    @contextmanager
    def expecting(self, request_id: str) -> Iterator[Arrivals]:
        """Collect the tokens of a request; those that come after the end are dropped."""
        assert request_id not in self._arrivals, request_id
        arrivals = self._arrivals[request_id] = Arrivals()
        try:
            yield arrivals
        finally:
            del self._arrivals[request_id]

    def deliver(self, batch: TokenBatch) -> None:
        """Hand tokens to whoever expects them."""
        arrivals = self._arrivals.get(batch.request_id)
        if arrivals is not None:
            arrivals.take(batch.first, batch.events)

    async def close(self) -> None:
        """Close every socket."""
        await self._starting
        for server in self._servers:
            server.close()
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections)

    async def _start(self) -> None:
        for listener in self._listeners:
            tune(listener)  # what is accepted inherits it
            start = _start_of(listener)
            self._servers.append(await start(self._serve, sock=listener))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receive from one router; whatever goes wrong ends this connection and nothing else."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = writer
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise HandshakeError("too many connections")
            await asyncio.wait_for(accept((reader, writer), self.address.key), HANDSHAKE_TIMEOUT_S)
            while True:
                for batch in await read_frame(reader):
                    self.deliver(batch)
        except LinkClosed:
            pass  # the router is gone; Ray tells those who wait for it
        except (FrameError, HandshakeError, TimeoutError) as error:
            logger.warning("mailbox: connection refused: %s", str(error) or "no handshake in time")
        finally:
            del self._connections[task]
            writer.close()


def _start_of(listener: socket.socket) -> Callable[..., Awaitable[asyncio.Server]]:
    is_unix = listener.family == socket.AF_UNIX
    return asyncio.start_unix_server if is_unix else asyncio.start_server
