"""What the tests of the token path share: tokens, a mailbox, a limit of time."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cluster.engine.request import FinishReason, TokenEvent
from cluster.mailbox import Arrivals, Mailbox
from routing.expert_server import local_addresses

T = TypeVar("T")

LOCAL = local_addresses("127.0.0.1")


def events(*token_ids: int, finish_reason: FinishReason | None = None) -> list[TokenEvent]:
    """Tokens that follow each other; the finish reason is that of the last."""
    *others, last = token_ids
    return [*map(TokenEvent, others), TokenEvent(last, finish_reason=finish_reason)]


async def ids_of(arrivals: Arrivals) -> list[int]:
    """All ids to the end."""
    ids: list[int] = []
    while batch := await arrivals.batch():
        ids += [event.token_id for event in batch]
    return ids


@asynccontextmanager
async def open_mailbox(addresses: Sequence[str] = LOCAL) -> AsyncIterator[Mailbox]:
    """A mailbox on this machine; no connection may be left at its end."""
    mailbox = Mailbox("node", addresses)
    try:
        yield mailbox
    finally:
        await mailbox.close()
        assert mailbox.num_connections == 0


def run_in_time(test: Coroutine[Any, Any, T], timeout_s: float = 20.0) -> T:
    """Run to the end; a test that hangs fails."""
    return asyncio.run(asyncio.wait_for(test, timeout_s))
