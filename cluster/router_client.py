"""Asking routers for tokens, from the ingress.

A call of a router lives as long as its request and returns all its tokens; before that they arrive
in the ingress's mailbox, a step at a time. Ray would take a millisecond of both sides for each.
If a router dies in mid-stream the request goes on at another one: prompt and tokens so far are sent
again, and since the random numbers depend on (seed, position) alone, so do the tokens to come.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.errors import EngineBusy, EngineStopped, NotReady, RequestFailed
from cluster.mailbox import Arrivals, Mailbox

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
PAUSE_S = 0.1
READY_TIMEOUT_S = 20.0

# What is raised when a router, or the node that it was on, is gone.
LOST = (
    RayActorError,
    EngineStopped,
    ObjectLostError,
    NodeDiedError,
    DeploymentUnavailableError,
)
CANCELLED = (TaskCancelledError, RequestCancelledError, asyncio.CancelledError)


class RouterClient:
    """All routers of one application, behind Serve's handle."""

    def __init__(self, routers: DeploymentHandle[Any], mailbox: Mailbox) -> None:
        self._routers = routers
        self._mailbox = mailbox
        # Calls that have not returned yet; the event loop itself would forget them.
        self._answers: set[asyncio.Task[None]] = set()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[list[TokenEvent], None]:
        """Give the tokens of one request as they come; closing the generator cancels it.

        Raises:
            ClusterError, ExpertUnavailable: as `Router.generate`.
            NotReady: router after router died under this request.
        """
        emitted: list[int] = []
        for attempt in range(MAX_ATTEMPTS):
            resumed = replace(
                request,
                request_id=f"{request.request_id}.{attempt}",
                output_ids=(*request.output_ids, *emitted),
            )
            try:
                async with aclosing(self._stream_once(resumed)) as batches:
                    async for events in batches:
                        emitted.extend(event.token_id for event in events)
                        yield events
                return
            except LOST as error:
                logger.warning(
                    "request=%s tokens=%d: router lost (%s), going on at another",
                    request.request_id,
                    len(emitted),
                    type(error).__name__,
                )
                await asyncio.sleep(PAUSE_S * 2**attempt)
        raise NotReady(f"{MAX_ATTEMPTS} routers were lost under this request")

    async def check_ready(self) -> None:
        """Return if a token went through every layer and expert within the last seconds.

        Raises:
            NotReady: it could not.
        """
        try:
            await asyncio.wait_for(self._routers.check_ready.remote(), READY_TIMEOUT_S)
        except (TimeoutError, BackPressureError) as error:
            raise NotReady("no router answered in time") from error
        except RayTaskError as error:
            raise _cause(error) from error
        except LOST as error:
            raise NotReady("a router was lost") from error

    async def _stream_once(
        self, request: GenerateRequest
    ) -> AsyncGenerator[list[TokenEvent], None]:
        with self._mailbox.expecting(request.request_id) as arrivals:
            response = cast(
                DeploymentResponse[list[TokenEvent]],
                self._routers.generate.remote(request, self._mailbox.address),
            )
            answer = asyncio.create_task(_receive_answer(response, arrivals))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
            try:
                while events := await arrivals.batch():
                    yield events
            finally:
                if not (arrivals.is_finished or answer.done()):
                    response.cancel()  # type: ignore[no-untyped-call]


async def _receive_answer(
    response: DeploymentResponse[list[TokenEvent]], arrivals: Arrivals
) -> None:
    """Wait for the router's call, and pass on all its tokens or what ended it."""
    try:
        arrivals.take(0, await response)
        arrivals.end()
    except (Exception, asyncio.CancelledError) as error:
        arrivals.end(_as_ours(error))


def _as_ours(error: BaseException) -> Exception:
    """The router's own error, out of Ray's wrapping."""
    if isinstance(error, LOST):
        return error
    if isinstance(error, BackPressureError):
        return EngineBusy(error.args[0])
    if isinstance(error, RayTaskError):
        return _cause(error)
    if isinstance(error, CANCELLED) or not isinstance(error, Exception):
        return RequestFailed("the router cancelled it")
    return error


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, Exception) else RequestFailed(str(cause))
