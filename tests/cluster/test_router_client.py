"""The client of the routers, against handles that play a script: one attempt after the other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError, TaskCancelledError

from cluster.engine.request import FinishReason, GenerateRequest, TokenEvent
from cluster.errors import EngineBusy, EngineStopped, NotReady, RequestFailed, RequestTooLarge
from cluster.router_client import MAX_ATTEMPTS, RouterClient
from model.sampling_params import SamplingParams
from routing.errors import ExpertUnavailable

Step = Sequence[TokenEvent] | Exception

REQUEST = GenerateRequest(
    request_id="r", prompt_ids=(1, 2), params=SamplingParams(max_tokens=6), output_ids=(90,)
)


def events(*token_ids: int, finish_reason: FinishReason | None = None) -> list[TokenEvent]:
    """Tokens of one step; the finish reason is that of the last."""
    *others, last = token_ids
    return [
        *map(TokenEvent, others),
        TokenEvent(last, finish_reason=finish_reason),
    ]


def from_router(cause: Exception) -> Exception:
    """An error as Serve raises it here when a router raised it there."""
    kind: Any = RayTaskError
    error = kind("stream", "traceback", cause, "router", 1, "127.0.0.1").as_instanceof_cause()
    assert isinstance(error, RayTaskError) and isinstance(error, type(cause))
    return error


@dataclass
class FakeResponse:
    """Plays one attempt; waits for ever after its last step, unless that ends it."""

    steps: Sequence[Step]
    num_cancels: int = 0

    async def __aiter__(self) -> AsyncIterator[Sequence[TokenEvent]]:
        for step in self.steps:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            yield step
        if not (self.steps and self.steps[-1][-1].finish_reason):  # type: ignore[index]
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.num_cancels += 1


@dataclass
class FakeRouters:
    """A handle whose answers are scripted, one script for each attempt."""

    scripts: list[Sequence[Step]]
    requests: list[GenerateRequest] = field(default_factory=list)
    responses: list[FakeResponse] = field(default_factory=list)
    ready: Exception | None = None

    def options(self, *, stream: bool) -> "FakeRouters":
        assert stream
        return self

    @property
    def stream(self) -> "FakeRouters":
        return self

    def remote(self, request: GenerateRequest) -> FakeResponse:
        self.requests.append(request)
        self.responses.append(FakeResponse(self.scripts.pop(0)))
        return self.responses[-1]


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
        client = RouterClient(routers)  # type: ignore[arg-type]
        batches = [batch async for batch in client.stream(REQUEST)]
        return [event.token_id for batch in batches for event in batch]

    return asyncio.run(run())


def test_tokens_come_through_in_order() -> None:
    routers = FakeRouters([[events(3), events(4, 5, finish_reason="stop")]])

    assert collect(routers) == [3, 4, 5]
    assert routers.requests[0].output_ids == (90,)
    assert routers.responses[0].num_cancels == 0


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
        stream = RouterClient(routers).stream(REQUEST)  # type: ignore[arg-type]
        await anext(stream)
        await stream.aclose()
        return routers.responses[0].num_cancels

    assert asyncio.run(run()) == 1


def test_cancelling_the_task_that_reads_cancels_the_request() -> None:
    routers = FakeRouters([[events(3)]])

    async def run() -> None:
        stream = RouterClient(routers).stream(REQUEST)  # type: ignore[arg-type]
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
    client: Any = RouterClient(FakeCheck(error))  # type: ignore[arg-type]

    with pytest.raises(NotReady, match=expected):
        asyncio.run(client.check_ready())


def test_a_ready_router_is_ready() -> None:
    client: Any = RouterClient(FakeCheck(None))  # type: ignore[arg-type]

    assert asyncio.run(client.check_ready()) is None
