"""The client of the routers, against handles that play a script: one attempt after the other."""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError, TaskCancelledError

from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.errors import EngineBusy, EngineStopped, NotReady, RequestFailed, RequestTooLarge
from cluster.mailbox import Mailbox
from cluster.router_client import MAX_ATTEMPTS, RouterClient
from cluster.token_frames import TokenBatch
from cluster.token_link import MailboxAddress
from model.sampling_params import SamplingParams
from routing.errors import ExpertUnavailable
from tests.cluster.tokens import events, run_in_time

Step = Sequence[TokenEvent] | Exception

REQUEST = GenerateRequest(
    request_id="r", prompt_ids=(1, 2), params=SamplingParams(max_tokens=6), output_ids=(90,)
)


def from_router(cause: Exception) -> Exception:
    """An error as Serve raises it here when a router raised it there."""
    kind: Any = RayTaskError
    error = kind("generate", "traceback", cause, "router", 1, "127.0.0.1").as_instanceof_cause()
    assert isinstance(error, RayTaskError) and isinstance(error, type(cause))
    return error


@dataclass
class FakeResponse:
    """Plays one attempt: each step goes to the mailbox, and the call returns all tokens or raises.

    After its last step it waits for ever, unless that ends it.
    """

    request_id: str
    steps: Sequence[Step]
    mailbox: Mailbox
    loses: bool = False
    num_cancels: int = 0
    has_returned: bool = False

    def __await__(self) -> Generator[Any, None, list[TokenEvent]]:
        return self._play().__await__()

    async def _play(self) -> list[TokenEvent]:
        sent: list[TokenEvent] = []
        for step in self.steps:
            await asyncio.sleep(0.001)
            if isinstance(step, Exception):
                raise step
            if not self.loses:
                self.mailbox.deliver(TokenBatch(self.request_id, len(sent), tuple(step)))
            sent += step
        if not (sent and sent[-1].finish_reason):
            await asyncio.Event().wait()
        await asyncio.sleep(0.001)
        self.has_returned = True
        return sent

    def cancel(self) -> None:
        self.num_cancels += 1


@dataclass
class FakeRouters:
    """A handle whose answers are scripted, one script for each attempt.

    Attributes:
        loses: nothing reaches the mailbox.
    """

    scripts: list[Sequence[Step]]
    loses: bool = False
    requests: list[GenerateRequest] = field(default_factory=list)
    responses: list[FakeResponse] = field(default_factory=list)
    mailbox: Mailbox | None = None

    @property
    def generate(self) -> "FakeRouters":
        return self

    def client(self) -> RouterClient:
        self.mailbox = Mailbox("node", [])
        return RouterClient(self, self.mailbox)  # type: ignore[arg-type]

    def remote(self, request: GenerateRequest, mailbox: MailboxAddress) -> FakeResponse:
        assert self.mailbox is not None and mailbox == self.mailbox.address
        self.requests.append(request)
        response = FakeResponse(request.request_id, self.scripts.pop(0), self.mailbox, self.loses)
        self.responses.append(response)
        return response


class FakeCheck:
    """A handle of which only `check_ready` is asked."""

    def __init__(self, error: Exception | None) -> None:
        self.check_ready = self
        self._error = error

    async def remote(self) -> None:
        if self._error is not None:
            raise self._error


def collect(routers: FakeRouters) -> list[int]:
    """All ids that the client gives for the request."""

    async def run() -> list[int]:
        batches = [batch async for batch in routers.client().stream(REQUEST)]
        return [event.token_id for batch in batches for event in batch]

    return run_in_time(run())


def test_tokens_come_through_in_order() -> None:
    routers = FakeRouters([[events(3), events(4, 5, finish_reason="stop")]])

    assert collect(routers) == [3, 4, 5]
    assert routers.requests[0].output_ids == (90,)
    assert routers.responses[0].num_cancels == 0


def test_the_last_token_is_not_kept_waiting_for_the_call_to_return() -> None:
    routers = FakeRouters([[events(3, finish_reason="stop")]])

    async def run() -> list[bool]:
        returned = []
        async for _ in routers.client().stream(REQUEST):
            returned.append(routers.responses[0].has_returned)
        await asyncio.sleep(0.01)
        return [*returned, routers.responses[0].has_returned]

    assert run_in_time(run()) == [False, True]
    assert routers.responses[0].num_cancels == 0


def test_the_answer_brings_what_did_not_come_on_the_way() -> None:
    routers = FakeRouters([[events(3), events(4, 5, finish_reason="stop")]], loses=True)

    assert collect(routers) == [3, 4, 5]


def test_a_router_that_dies_unheard_loses_no_token() -> None:
    scripts: list[Sequence[Step]] = [
        [events(3), ActorDiedError()],
        [events(3, 4, finish_reason="stop")],
    ]
    routers = FakeRouters(scripts, loses=True)

    assert collect(routers) == [3, 4]
    assert routers.requests[1].output_ids == (90,)


def test_late_tokens_of_a_lost_router_are_not_taken_for_the_next_one_s() -> None:
    routers = FakeRouters(
        [[events(3), ActorDiedError()], [events(4), events(5, finish_reason="stop")]]
    )

    async def run() -> list[int]:
        ids: list[int] = []
        async for batch in routers.client().stream(REQUEST):
            ids += [event.token_id for event in batch]
            if ids == [3, 4]:
                assert routers.mailbox is not None
                routers.mailbox.deliver(TokenBatch("r.0", 1, (TokenEvent(666),)))
        return ids

    assert run_in_time(run()) == [3, 4, 5]


@pytest.mark.parametrize(
    "loss", [ActorDiedError(), RayActorError(), from_router(EngineStopped("shut down"))]
)
def test_a_request_goes_on_at_another_router_after_the_tokens_that_it_gave(loss: Exception) -> None:
    routers = FakeRouters(
        [
            [events(3), events(4, 5), loss],
            [loss],
            [events(6), loss],
            [events(7, finish_reason="length")],
        ]
    )

    token_ids = collect(routers)

    assert token_ids == [3, 4, 5, 6, 7]
    assert [request.output_ids for request in routers.requests] == [
        (90,),
        (90, 3, 4, 5),
        (90, 3, 4, 5),
        (90, 3, 4, 5, 6),
    ]


def test_every_attempt_has_a_request_id_of_its_own() -> None:
    routers = FakeRouters([[ActorDiedError()], [events(3, finish_reason="stop")]])

    collect(routers)

    assert len({request.request_id for request in routers.requests}) == 2


def test_a_router_that_dies_after_the_last_token_is_not_asked_again() -> None:
    routers = FakeRouters([[events(3, finish_reason="stop"), ActorDiedError()]])

    assert collect(routers) == [3]


def test_the_client_gives_up_after_router_upon_router_died() -> None:
    routers = FakeRouters([[ActorDiedError()] for _ in range(MAX_ATTEMPTS)])

    with pytest.raises(NotReady):
        collect(routers)

    assert len(routers.requests) == MAX_ATTEMPTS


@pytest.mark.parametrize(
    "cause",
    [
        EngineBusy(3),
        RequestTooLarge(900, 512),
        ExpertUnavailable("expert 3"),
        RequestFailed("internal error"),
    ],
)
def test_an_error_of_the_router_arrives_as_itself_and_is_not_retried(cause: Exception) -> None:
    routers = FakeRouters([[events(3), from_router(cause)]])

    with pytest.raises(type(cause)) as raised:
        collect(routers)

    assert type(raised.value) is type(cause)
    assert str(raised.value) == str(cause)
    assert len(routers.requests) == 1


def test_a_stream_that_ray_cancelled_has_failed() -> None:
    routers = FakeRouters([[events(3), TaskCancelledError()]])

    with pytest.raises(RequestFailed):
        collect(routers)


def test_closing_the_stream_cancels_the_request_before_it_returns() -> None:
    routers = FakeRouters([[events(3), events(4)]])

    async def run() -> int:
        stream = routers.client().stream(REQUEST)
        await anext(stream)
        await stream.aclose()
        return routers.responses[0].num_cancels

    assert asyncio.run(run()) == 1


def test_cancelling_the_task_that_reads_cancels_the_request() -> None:
    routers = FakeRouters([[events(3)]])

    async def run() -> None:
        stream = routers.client().stream(REQUEST)
        await anext(stream)
        reading = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(run())

    assert routers.responses[0].num_cancels == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (from_router(NotReady("experts of layer 2: not finite")), "experts of layer 2: not finite"),
        (ActorDiedError(), "a router was lost"),
    ],
)
def test_a_router_that_is_not_ready_says_why(error: Exception, expected: str) -> None:
    client: Any = RouterClient(FakeCheck(error), None)  # type: ignore[arg-type]

    with pytest.raises(NotReady, match=expected):
        asyncio.run(client.check_ready())


def test_a_ready_router_is_ready() -> None:
    client: Any = RouterClient(FakeCheck(None), None)  # type: ignore[arg-type]

    assert asyncio.run(client.check_ready()) is None
