"""The parts of the router that need no Ray: the choice of a link, and the way out of the engine."""

import asyncio
import threading

import pytest

from cluster.config import LinkKind
from cluster.engine.request import TokenEvent
from cluster.errors import NotReady, RequestFailed
from cluster.router import _QueueListener, choose_address
from routing.errors import LinkError
from routing.placement import HostView

HERE, ELSEWHERE = "node-1", "node-2"
UNIX, TCP = "unix:mixray-1", "tcp:10.0.0.1:7000"
HOST = HostView("host", HERE, (UNIX, TCP), (0, 1))


@pytest.mark.parametrize(
    ("link", "node_id", "expected"),
    [
        ("auto", HERE, UNIX),
        ("auto", ELSEWHERE, TCP),
        ("tcp", HERE, TCP),
        ("tcp", ELSEWHERE, TCP),
        ("unix", HERE, UNIX),
    ],
)
def test_a_link_is_unix_within_a_node_and_tcp_across_nodes(
    link: LinkKind, node_id: str, expected: str
) -> None:
    assert choose_address(HOST, link, node_id) == expected


def test_a_near_host_without_a_unix_address_is_reached_by_tcp() -> None:
    host = HostView("host", HERE, (TCP,), ())

    assert choose_address(host, "auto", HERE) == TCP


def test_a_host_that_lacks_the_link_insisted_on_is_named() -> None:
    host = HostView("host-7", HERE, (TCP,), ())

    with pytest.raises(LinkError, match="host-7 does not listen on unix"):
        choose_address(host, "unix", HERE)


def test_tokens_that_came_together_are_given_together_and_in_order() -> None:
    async def run() -> list[int]:
        listener = _QueueListener(asyncio.get_running_loop())
        for token_id in (5, 6, 7):
            listener.token(TokenEvent(token_id))
        await asyncio.sleep(0)
        return [event.token_id for event in await listener.events()]

    assert asyncio.run(run()) == [5, 6, 7]


def test_tokens_arrive_from_another_thread() -> None:
    token_ids = list(range(500))

    async def run() -> list[int]:
        listener = _QueueListener(asyncio.get_running_loop())

        def send() -> None:
            for token_id in token_ids:
                listener.token(TokenEvent(token_id))

        sending = threading.Thread(target=send)
        sending.start()
        seen: list[int] = []
        while len(seen) < len(token_ids):
            seen += [event.token_id for event in await listener.events()]
        sending.join()
        return seen

    assert asyncio.run(run()) == token_ids


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def run() -> list[int]:
        listener = _QueueListener(asyncio.get_running_loop())
        listener.token(TokenEvent(5))
        listener.token(TokenEvent(6))
        listener.failed(RequestFailed("internal error"))
        await asyncio.sleep(0)
        events = await listener.events()
        with pytest.raises(RequestFailed):
            await listener.events()
        return [event.token_id for event in events]

    assert asyncio.run(run()) == [5, 6]


def test_a_refusal_without_any_token_is_raised() -> None:
    async def run() -> None:
        listener = _QueueListener(asyncio.get_running_loop())
        listener.failed(NotReady("not now"))
        with pytest.raises(NotReady):
            await listener.events()

    asyncio.run(run())
