"""The postman: from the engine's thread to mailboxes, good, slow, unreachable and gone."""

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import cluster.postman
from cluster.engine.request import TokenEvent
from cluster.errors import RequestFailed
from cluster.mailbox import Mailbox
from cluster.postman import MAX_UNSENT_BYTES, Postman
from cluster.token_frames import TokenBatch
from cluster.token_link import MailboxAddress, accept, read_frame
from tests.cluster.tokens import events, ids_of, open_mailbox, run_in_time


@asynccontextmanager
async def open_postman() -> AsyncIterator[Postman]:
    """A postman on the mailbox's node; no task is left at its end."""
    postman = Postman("node", "auto")
    try:
        yield postman
    finally:
        postman.close()
        await asyncio.sleep(0)


def test_tokens_arrive_from_another_thread_and_are_returned_all_together() -> None:
    token_ids = list(range(500))
    sent = events(*token_ids, finish_reason="length")

    async def run() -> tuple[list[int], list[TokenEvent]]:
        async with open_mailbox() as mailbox, open_postman() as postman:
            with mailbox.expecting("r.0") as arrivals:
                delivery = postman.begin("r.0", mailbox.address)
                engine = threading.Thread(target=lambda: [*map(delivery.token, sent)])
                engine.start()
                ids, answer = await ids_of(arrivals), await delivery.answer()
                engine.join()
                postman.end(delivery)
                return ids, answer

    assert run_in_time(run()) == (token_ids, sent)


def test_the_tokens_of_a_step_share_a_frame() -> None:
    async def run() -> list[TokenBatch]:
        async with open_reader() as (address, reader), open_postman() as postman:
            deliveries = [postman.begin(f"{name}.0", address) for name in "ab"]
            streams = await reader
            for delivery in deliveries:
                delivery.token(TokenEvent(1))
                delivery.token(TokenEvent(2))
            frame = await read_frame(streams)
            for delivery in deliveries:
                postman.end(delivery)
            return frame

    frame = run_in_time(run())

    assert sorted(frame, key=lambda batch: batch.request_id) == [
        TokenBatch("a.0", 0, tuple(events(1, 2))),
        TokenBatch("b.0", 0, tuple(events(1, 2))),
    ]


def test_one_connection_serves_all_requests_of_a_mailbox() -> None:
    async def run() -> int:
        async with open_mailbox() as mailbox, open_postman() as postman:
            for number in range(3):
                name = f"r.{number}"
                with mailbox.expecting(name) as arrivals:
                    delivery = postman.begin(name, mailbox.address)
                    delivery.token(*events(5, finish_reason="stop"))
                    await ids_of(arrivals)
                    postman.end(delivery)
            return mailbox.num_connections

    assert run_in_time(run()) == 1


def test_an_error_of_the_engine_is_raised_by_the_answer() -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox, open_postman() as postman:
            delivery = postman.begin("r.0", mailbox.address)
            delivery.token(TokenEvent(5))
            delivery.failed(RequestFailed("internal error"))
            with pytest.raises(RequestFailed):
                await delivery.answer()
            postman.end(delivery)

    run_in_time(run())


def test_what_the_engine_says_after_the_end_of_a_request_harms_nobody() -> None:
    async def run() -> list[TokenEvent]:
        async with open_mailbox() as mailbox, open_postman() as postman:
            cancelled = postman.begin("a.0", mailbox.address)
            waiting = asyncio.create_task(cancelled.answer())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            postman.end(cancelled)
            cancelled.token(TokenEvent(1))
            cancelled.failed(RequestFailed("late"))
            delivery = postman.begin("b.0", mailbox.address)
            delivery.token(*events(5, finish_reason="stop"))
            answer = await delivery.answer()
            postman.end(delivery)
            return answer

    assert run_in_time(run()) == events(5, finish_reason="stop")


NOWHERE = MailboxAddress("node", (f"unix:{secrets.token_hex(8)}",), bytes(32))


@pytest.mark.parametrize(
    "address",
    [NOWHERE, MailboxAddress("node", (), bytes(32)), MailboxAddress("far", ("unix:x",), bytes(32))],
    ids=["nobody listens", "no address", "no way there"],
)
def test_without_a_way_to_the_mailbox_the_answer_comes_whole_and_one_line_says_so(
    address: MailboxAddress, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.postman, "RETRY_AFTER_S", 0.0)

    async def run() -> list[TokenEvent]:
        async with open_postman() as postman:
            for number in range(3):
                delivery = postman.begin(f"r.{number}", address)
                delivery.token(TokenEvent(4))
                await asyncio.sleep(0.01)
                delivery.token(*events(5, finish_reason="stop"))
                answer = await delivery.answer()
                postman.end(delivery)
        return answer

    assert run_in_time(run()) == events(4, 5, finish_reason="stop")
    [message] = caplog.messages
    assert "cannot be reached" in message


def test_a_mailbox_that_does_not_hold_the_key_gets_no_token() -> None:
    async def run() -> list[int]:
        async with open_mailbox() as mailbox, open_postman() as postman:
            there = mailbox.address
            wrong = MailboxAddress(there.node_id, there.addresses, bytes(32))
            with mailbox.expecting("r.0") as arrivals:
                delivery = postman.begin("r.0", wrong)
                delivery.token(*events(5, finish_reason="stop"))
                answer = await delivery.answer()
                await asyncio.sleep(0.05)
                postman.end(delivery)
                arrivals.end()
                assert answer == events(5, finish_reason="stop")
                return await ids_of(arrivals)

    assert run_in_time(run()) == []


def test_a_mailbox_that_reads_nothing_holds_up_nothing_and_catches_up() -> None:
    num_tokens = 20_000

    async def run() -> tuple[int, list[int]]:
        async with open_reader() as (address, reader), open_postman() as postman:
            delivery = postman.begin("r.0", address)
            streams = await reader
            unsent = 0
            for token_id in range(num_tokens):
                delivery.token(TokenEvent(token_id, -1.0, ((1, -1.0),) * 20))
                if token_id % 100 == 0:
                    await asyncio.sleep(0)
                    transport = delivery.route._transport
                    assert transport is not None
                    unsent = max(unsent, transport.get_write_buffer_size())
            ids: list[int] = []
            while len(ids) < num_tokens:
                for batch in await read_frame(streams):
                    assert batch.first == len(ids)
                    ids += [event.token_id for event in batch.events]
                delivery.route.send()
            postman.end(delivery)
            return unsent, ids

    unsent, ids = run_in_time(run())

    assert ids == list(range(num_tokens))
    assert MAX_UNSENT_BYTES < unsent < 8 * MAX_UNSENT_BYTES


def test_a_connection_that_broke_is_opened_again_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster.postman, "RETRY_AFTER_S", 0.0)

    async def run() -> list[int]:
        async with open_mailbox() as mailbox, open_postman() as postman:
            with mailbox.expecting("a.0") as arrivals:
                a = postman.begin("a.0", mailbox.address)
                a.token(TokenEvent(1))
                first = await arrivals.batch()
                hang_up(mailbox)
                while a.route._transport is not None:
                    await asyncio.sleep(0.001)
                a.token(TokenEvent(2))
                b = postman.begin("b.0", mailbox.address)
                second = await arrivals.batch()
                postman.end(a)
                postman.end(b)
                return [event.token_id for event in first + second]

    assert run_in_time(run()) == [1, 2]


def test_routes_to_mailboxes_that_are_gone_are_forgotten() -> None:
    async def run() -> int:
        async with open_postman() as postman:
            for number in range(5):
                async with open_mailbox() as mailbox:
                    delivery = postman.begin(f"r.{number}", mailbox.address)
                    route = delivery.route
                    while route._transport is None:
                        await asyncio.sleep(0.001)
                    postman.end(delivery)
                while not route.is_idle:
                    await asyncio.sleep(0.001)
            return len(postman._routes)

    assert run_in_time(run()) == 1


def hang_up(mailbox: Mailbox) -> None:
    for writer in mailbox._connections.values():
        writer.close()


@asynccontextmanager
async def open_reader() -> AsyncIterator[
    tuple[MailboxAddress, "asyncio.Future[asyncio.StreamReader]"]
]:
    """A mailbox's socket that reads no more than it is made to."""
    key = secrets.token_bytes(32)
    connected: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await accept((reader, writer), key)
        connected.set_result(reader)

    name = f"mixray-{secrets.token_hex(8)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("\0" + name)
    server = await asyncio.start_unix_server(serve, sock=sock)
    try:
        yield MailboxAddress("node", (f"unix:{name}",), key), connected
    finally:
        server.close()
        for writer in writers:
            writer.close()
