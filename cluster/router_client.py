"""Asking routers for tokens, from the ingress.

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
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.errors import EngineBusy, EngineStopped, NotReady, RequestFailed

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


class RouterClient:
    """All routers of one application, behind Serve's handle."""

    def __init__(self, routers: DeploymentHandle[Any]) -> None:
        self._routers = routers

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[list[TokenEvent], None]:
        """Give the tokens of one request as they come; closing the generator cancels it.

        Raises:
            ClusterError, ExpertUnavailable: as `Router.stream`.
            NotReady: router after router died under this request.
        """
        emitted: list[int] = []
        is_finished = False
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
                        is_finished = events[-1].finish_reason is not None
                        yield events
                return
            except LOST as error:
                if is_finished:
                    return
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
        routers = self._routers.options(stream=True)
        response = cast(
            DeploymentResponseGenerator[list[TokenEvent]], routers.stream.remote(request)
        )
        is_over = False
        try:
            async for events in response:
                yield events
            is_over = True
        except LOST:
            is_over = True
            raise
        except BackPressureError as error:
            is_over = True
            raise EngineBusy(error.args[0]) from error
        except (RayTaskError, TaskCancelledError, RequestCancelledError) as error:
            is_over = True
            raise _cause(error) from error
        finally:
            if not is_over:
                response.cancel()  # type: ignore[no-untyped-call]


def _cause(error: Exception) -> Exception:
    """The router's own error, out of Ray's wrapping."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else RequestFailed("the router cancelled it")
