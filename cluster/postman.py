"""Carries a router's tokens to the mailboxes of those who asked, one frame a step for each.

The engine's thread hands tokens over and goes on; the event loop sends them. A mailbox that cannot
be reached, or is slow to read, holds up nothing: what was not sent goes out with the next step, or
is part of the answer that the router's call returns in any case.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from cluster.addresses import choose_address
from cluster.config import LinkKind
from cluster.engine.request import TokenEvent
from cluster.token_frames import MAX_FRAME_EVENTS, TokenBatch, encode
from cluster.token_link import MailboxAddress, connect
from routing.errors import LinkError

logger = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 2**18
CONNECT_TIMEOUT_S = 3.0
RETRY_AFTER_S = 5.0

News = TokenEvent | Exception


class Delivery:
    """One request's tokens: all so far, and how many of them went to its mailbox.

    The engine's thread calls `token` and `failed`; all else belongs to the event loop.
    """

    def __init__(
        self, request_id: str, route: "Route", tell: Callable[["Delivery", News], None]
    ) -> None:
        self.route = route
        self.events: list[TokenEvent] = []
        self.num_sent = 0
        self._request_id = request_id
        self._tell = tell
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def token(self, event: TokenEvent) -> None:
        self._tell(self, event)

    def failed(self, error: Exception) -> None:
        self._tell(self, error)

    def take(self, news: News) -> None:
        """Note what the engine said."""
        if isinstance(news, TokenEvent):
            self.events.append(news)
        if self._end.done():
            return
        if isinstance(news, Exception):
            self._end.set_exception(news)
        elif news.finish_reason is not None:
            self._end.set_result(None)

    def next_batch(self, room: int) -> TokenBatch | None:
        """The tokens to be sent next, at most `room`; None if there are none."""
        events = tuple(self.events[self.num_sent : self.num_sent + room])
        return TokenBatch(self._request_id, self.num_sent, events) if events else None

    async def answer(self) -> list[TokenEvent]:
        """Wait for the end and give all tokens.

        Raises:
            Exception: whatever ended the request.
        """
        await self._end
        return self.events


class Route:
    """The connection to one mailbox, and what goes over it.

    Mutable state: the deliveries, the transport while there is a connection, and the task that
    keeps it.
    """

    def __init__(self, mailbox: MailboxAddress, address: Callable[[], str]) -> None:
        self.deliveries: set[Delivery] = set()
        self._mailbox = mailbox
        self._address = address
        self._transport: asyncio.WriteTransport | None = None
        self._retry_at_s = float("-inf")
        self._has_warned = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing goes over it, and nothing could without a new connection."""
        return not self.deliveries and (self._keeping is None or self._keeping.done())

    def open(self) -> None:
        """Connect if there is no connection, unless that failed a moment ago."""
        if self._keeping is not None and not self._keeping.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._retry_at_s:
            self._keeping = loop.create_task(self._keep())

    def send(self) -> None:
        """Send one frame of what is new, if the mailbox has read most of those before."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            return
        room = MAX_FRAME_EVENTS
        batches = []
        for delivery in self.deliveries:
            batch = delivery.next_batch(room)
            if batch is not None:
                batches.append(batch)
                room -= len(batch.events)
                delivery.num_sent += len(batch.events)
        if batches:
            transport.write(encode(batches))

    def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()

    async def _keep(self) -> None:
        """Hold a connection until the mailbox hangs up."""
        try:
            connecting = connect(self._address(), self._mailbox.key)
            reader, writer = await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
        except (LinkError, TimeoutError) as error:
            self._warn(error)
            return
        finally:
            self._retry_at_s = asyncio.get_running_loop().time() + RETRY_AFTER_S
        try:
            self._transport = writer.transport
            for delivery in self.deliveries:
                delivery.num_sent = 0  # nobody knows how much came of what went before
            self.send()
            await reader.read(1)  # a mailbox says nothing more
        except OSError as error:
            self._warn(error)
        finally:
            self._transport = None
            writer.close()

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "mailbox=%s: cannot be reached, its answers come whole: %s",
                self._mailbox.addresses,
                str(error) or "no handshake in time",
            )


class Postman:
    """All routes of one router. Made and used on one event loop, but for what deliveries say.

    Args:
        node_id: where the router runs.
        link: which addresses to use, as for expert hosts.
    """

    def __init__(self, node_id: str, link: LinkKind) -> None:
        self._node_id = node_id
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._routes: dict[MailboxAddress, Route] = {}
        self._news: deque[tuple[Delivery, News]] = deque()
        self._is_called = False

    def begin(self, request_id: str, mailbox: MailboxAddress) -> Delivery:
        """Begin to deliver; the engine is to tell the delivery."""
        if mailbox not in self._routes:
            self._routes = {key: route for key, route in self._routes.items() if not route.is_idle}
            self._routes[mailbox] = Route(mailbox, lambda: self._address_of(mailbox))
        route = self._routes[mailbox]
        delivery = Delivery(request_id, route, self._tell)
        route.deliveries.add(delivery)
        route.open()
        return delivery

    def end(self, delivery: Delivery) -> None:
        """Send no more of a request."""
        delivery.route.deliveries.remove(delivery)

    def close(self) -> None:
        """Hang up."""
        for route in self._routes.values():
            route.close()

    def _tell(self, delivery: Delivery, news: News) -> None:
        """Called on the engine's thread: one call of the event loop, however much is told."""
        self._news.append((delivery, news))
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._carry)

    def _carry(self) -> None:
        # First, so that what is told from now on either is seen below or calls again.
        self._is_called = False
        routes = set()
        while self._news:
            delivery, news = self._news.popleft()
            delivery.take(news)
            routes.add(delivery.route)
        for route in routes:
            route.send()

    def _address_of(self, mailbox: MailboxAddress) -> str:
        is_near = mailbox.node_id == self._node_id
        return choose_address(mailbox.addresses, is_near, self._link)
