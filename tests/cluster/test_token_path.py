"""Client, mailbox and postman against real Ray Serve, around a router whose engine is a counter."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.config import LinkKind
from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.errors import EngineBusy
from cluster.postman import Postman
from cluster.router_client import RouterClient
from cluster.token_link import MailboxAddress
from model.sampling_params import SamplingParams
from tests.cluster.tokens import open_mailbox, run_in_time
from tests.serving import ray_with_serve

FOR_EVER = 10**6


def counting_router() -> serve.Deployment:
    """A router whose tokens count up from the number of ids so far, one every 5 ms."""

    # In here, so that it travels to the replicas by value: they cannot import the tests.
    class Counter:
        def __init__(self) -> None:
            self._running: list[str] = []

        async def generate(
            self, request: GenerateRequest, mailbox: MailboxAddress
        ) -> list[TokenEvent]:
            if request.prompt_ids == (13,):
                raise EngineBusy(7)
            postman = Postman("node", self._link)
            delivery = postman.begin(request.request_id, mailbox)
            self._running.append(request.request_id)
            counting = asyncio.create_task(count(request, delivery))
            try:
                return await delivery.answer()
            finally:
                counting.cancel()
                self._running.remove(request.request_id)
                postman.end(delivery)
                postman.close()

        def reconfigure(self, user_config: dict[str, LinkKind]) -> None:
            self._link = user_config["link"]

        async def running(self) -> tuple[int, list[str]]:
            return os.getpid(), self._running

    async def count(request: GenerateRequest, delivery: Any) -> None:
        for token_id in range(len(request.output_ids), request.params.max_tokens):
            is_last = token_id == request.params.max_tokens - 1
            delivery.token(TokenEvent(token_id, finish_reason="length" if is_last else None))
            await asyncio.sleep(0.005)

    return serve.deployment(health_check_period_s=1, user_config={"link": "auto"})(Counter)


@pytest.fixture(scope="module")
def routers() -> Iterator[DeploymentHandle[Any]]:
    with ray_with_serve():
        yield serve.run(counting_router().bind(), name="counter", route_prefix=None)


def request(max_tokens: int, prompt_id: int = 1) -> GenerateRequest:
    return GenerateRequest(
        request_id=os.urandom(8).hex(),
        prompt_ids=(prompt_id,),
        params=SamplingParams(max_tokens=max_tokens),
    )


async def stream(client: RouterClient, max_tokens: int, prompt_id: int = 1) -> list[list[int]]:
    return [
        [event.token_id for event in batch]
        async for batch in client.stream(request(max_tokens, prompt_id))
    ]


async def until_idle(routers: DeploymentHandle[Any]) -> None:
    while (await routers.running.remote())[1]:
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kinds", ["unix tcp", "tcp", ""], ids=["unix", "tcp", "no way"])
def test_every_token_comes_once_and_on_the_way_if_there_is_one(
    routers: DeploymentHandle[Any], kinds: str
) -> None:
    addresses = {"unix": f"unix:test-{os.urandom(8).hex()}", "tcp": "tcp:127.0.0.1:0"}

    async def run() -> list[list[list[int]]]:
        async with open_mailbox([addresses[kind] for kind in kinds.split()]) as mailbox:
            client = RouterClient(routers, mailbox)
            return await asyncio.gather(*(stream(client, 40) for _ in range(4)))

    answers = run_in_time(run())

    assert [sum(answer, []) for answer in answers] == [list(range(40))] * 4
    for answer in answers:
        assert len(answer) > 20 if kinds else len(answer) == 1


def test_closing_the_stream_ends_the_call_at_the_router(routers: DeploymentHandle[Any]) -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox:
            client = RouterClient(routers, mailbox)
            async with aclosing(client.stream(request(FOR_EVER))) as batches:
                await anext(batches)
                assert len((await routers.running.remote())[1]) == 1
            await until_idle(routers)

    run_in_time(run())


def test_cancelling_the_reader_before_the_first_token_ends_the_call(
    routers: DeploymentHandle[Any],
) -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox:
            reading = asyncio.create_task(stream(RouterClient(routers, mailbox), FOR_EVER))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            await until_idle(routers)

    run_in_time(run())


def test_an_error_of_the_router_arrives_as_itself(routers: DeploymentHandle[Any]) -> None:
    async def run() -> None:
        async with open_mailbox() as mailbox:
            with pytest.raises(EngineBusy) as raised:
                await stream(RouterClient(routers, mailbox), 5, prompt_id=13)
            assert raised.value.num_waiting == 7

    run_in_time(run())


def test_a_router_that_is_killed_is_replaced_without_a_gap(
    routers: DeploymentHandle[Any],
) -> None:
    async def run() -> list[int]:
        async with open_mailbox() as mailbox:
            ids: list[int] = []
            pid, _ = await routers.running.remote()
            async for batch in RouterClient(routers, mailbox).stream(request(300)):
                ids += [event.token_id for event in batch]
                if pid and len(ids) > 20:
                    os.kill(pid, signal.SIGKILL)
                    pid = 0
            return ids

    assert run_in_time(run(), timeout_s=60) == list(range(300))
