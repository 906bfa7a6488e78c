"""The mailbox: tokens once and in order, and peers that are not routers."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.engine.request import FinishReason, TokenEvent
from cluster.errors import RequestFailed
from cluster.mailbox import Arrivals, Mailbox
from cluster.token_frames import MAX_FRAME_BYTES, PREFIX, TokenBatch, encode
from cluster.token_link import GREETING, Streams, connect
from routing.errors import HandshakeError, LinkClosed
from tests.cluster.tokens import events, ids_of, open_mailbox, run_in_time


def test_tokens_are_given_in_order_and_together_if_they_came_together() -> None:
    async def run() -> list[list[TokenEvent]]:
        arrivals = Arrivals()
        arrivals.take(0, events(5))
        arrivals.take(1, events(6, 7))
        first = await arrivals.batch()
        arrivals.take(3, events(8, finish_reason="stop"))
        return [first, await arrivals.batch(), await arrivals.batch()]

    assert run_in_time(run()) == [events(5, 6, 7), events(8, finish_reason="stop"), []]


@pytest.mark.parametrize(
    "parts",
    [
        [(0, (5, 6)), (0, (5, 6, 7, 8))],  # the answer alone brings what is missing
        [(0, (5, 6)), (0, (5, 6)), (1, (6, 7)), (3, (8,))],  # doubled and overlapping frames
        [(0, (5,)), (2, (7,)), (0, (5, 6, 7, 8))],  # a frame was lost
        [(0, (5, 6, 7, 8)), (0, (5,)), (1, (6, 7, 8))],  # the answer overtook the frames
    ],
)
def test_every_token_comes_once_whichever_way_it_came(
    parts: list[tuple[int, tuple[int, ...]]],
) -> None:
    async def run() -> list[int]:
        arrivals = Arrivals()
        for first, ids in parts:
            reason: FinishReason | None = "length" if ids[-1] == 8 else None
            arrivals.take(first, events(*ids, finish_reason=reason))
        arrivals.end()
        return await ids_of(arrivals)

    assert run_in_time(run()) == [5, 6, 7, 8]


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def run() -> list[TokenEvent]:
        arrivals = Arrivals()
        arrivals.take(0, events(5, 6))
        arrivals.end(RequestFailed("internal error"))
        batch = await arrivals.batch()
        with pytest.raises(RequestFailed):
            await arrivals.batch()
        return batch

    assert run_in_time(run()) == events(5, 6)


def test_an_error_after_the_last_token_changes_nothing() -> None:
    async def run() -> list[int]:
        arrivals = Arrivals()
        arrivals.take(0, events(5, finish_reason="stop"))
        arrivals.end(RequestFailed("too late"))
        return await ids_of(arrivals)

    assert run_in_time(run()) == [5]


def test_frames_reach_those_who_expect_them_and_nobody_else() -> None:
    async def run() -> list[list[int]]:
        async with open_mailbox() as mailbox, hello(mailbox) as (_, writer):
            with mailbox.expecting("a.0") as a, mailbox.expecting("b.1") as b:
                end: FinishReason = "stop"
                writer.write(
                    encode(
                        [
                            TokenBatch("a.0", 0, (TokenEvent(1), TokenEvent(2))),
                            TokenBatch("b.0", 0, (TokenEvent(9),)),  # of an attempt that is over
                            TokenBatch("b.1", 0, tuple(events(3, finish_reason=end))),
                        ]
                    )
                )
                writer.write(encode([TokenBatch("a.0", 2, tuple(events(4, finish_reason=end)))]))
                return [await ids_of(a), await ids_of(b)]

    assert run_in_time(run()) == [[1, 2, 4], [3]]


@asynccontextmanager
async def hello(mailbox: Mailbox, address: str = "") -> AsyncIterator[Streams]:
    """A router's connection."""
    streams = await connect(address or mailbox.address.addresses[0], mailbox.address.key)
    try:
        yield streams
    finally:
        streams[1].close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_it_listens_on_both_kinds_of_link(kind: str) -> None:
    async def run() -> list[int]:
        async with open_mailbox() as mailbox:
            [address] = [a for a in mailbox.address.addresses if a.startswith(kind)]
            with mailbox.expecting("r.0") as arrivals:
                async with hello(mailbox, address) as (_, writer):
                    batch = TokenBatch("r.0", 0, tuple(events(5, finish_reason="stop")))
                    writer.write(encode([batch]))
                    return await ids_of(arrivals)

    assert run_in_time(run()) == [5]


def test_the_key_is_not_shown() -> None:
    async def run() -> tuple[str, bytes]:
        async with open_mailbox() as mailbox:
            return repr(mailbox.address), mailbox.address.key

    shown, key = run_in_time(run())

    assert len(key) == 32 and repr(key) not in shown and key.hex() not in shown


def test_a_router_without_the_key_is_refused_and_refuses() -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox:
            with pytest.raises(HandshakeError, match="does not hold the mailbox's key"):
                await connect(mailbox.address.addresses[0], b"another")

    run_in_time(run())


ANYTHING = GREETING + bytes(32) + bytes(32)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n" * 8, ANYTHING, ANYTHING + b"more"])
def test_a_stranger_is_hung_up_on_and_harms_nobody(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[int]:
        async with open_mailbox() as mailbox:
            await expect_hang_up(mailbox, sent)
            return await deliver_one(mailbox)

    assert run_in_time(run()) == [5]
    assert caplog.messages and "connection refused" in caplog.messages[0]


BAD_FRAMES = [
    PREFIX.pack(MAX_FRAME_BYTES + 1, 0),
    PREFIX.pack(3, 0) + b"abc",
    b"\xff" * 100,
]


@pytest.mark.parametrize("sent", BAD_FRAMES, ids=["too long", "checksum", "noise"])
def test_a_bad_frame_ends_its_connection_and_no_other(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[int]:
        async with open_mailbox() as mailbox:
            async with hello(mailbox) as (reader, writer):
                writer.write(sent)
                assert await reader.read() == b""
            return await deliver_one(mailbox)

    assert run_in_time(run()) == [5]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_router_that_dies_within_a_frame_is_forgotten() -> None:
    async def run() -> int:
        async with open_mailbox() as mailbox:
            async with hello(mailbox) as (_, writer):
                writer.write(encode([TokenBatch("r.0", 0, (TokenEvent(1),))])[:-1])
                await writer.drain()
            while mailbox.num_connections:
                await asyncio.sleep(0.001)
            return mailbox.num_connections

    assert run_in_time(run()) == 0


def test_nobody_listens_any_more_once_it_is_closed() -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox:
            address = mailbox.address
        for where in address.addresses:
            with pytest.raises(LinkClosed):
                await connect(where, address.key)

    run_in_time(run())


async def expect_hang_up(mailbox: Mailbox, sent: bytes) -> None:
    """Send bytes as a stranger, until the mailbox has had enough."""
    path = "\0" + mailbox.address.addresses[0].removeprefix("unix:")
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        while await reader.read(100):
            pass
    writer.close()


async def deliver_one(mailbox: Mailbox) -> list[int]:
    """A well-behaved router's tokens."""
    with mailbox.expecting("r.0") as arrivals:
        async with hello(mailbox) as (_, writer):
            writer.write(encode([TokenBatch("r.0", 0, tuple(events(5, finish_reason="stop")))]))
            return await ids_of(arrivals)
