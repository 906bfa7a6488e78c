"""Deltas to server-sent events, and what happens when the client goes away.

A stream that fails ends with an error event and without `[DONE]`: only `[DONE]` says that the
answer is whole.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.api.errors import error_body, log_if_ours
from deploy.api.generation import Delta
from deploy.api.shaping import AnswerShape

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """A response that sends events as they come. Closes them when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        # Proxies must neither store the events nor collect them into larger pieces.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, unless the client goes away first."""
        try:
            await unless_disconnected(receive, self._send_all(send))
        except ClientDisconnect:
            pass
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def answer_events(
    shape: AnswerShape,
    deltas: AsyncGenerator[Delta, None],
    include_usage: bool,
    request_id: str,
) -> AsyncGenerator[bytes, None]:
    """Give the events of one answer. Closing this closes `deltas`."""
    async with aclosing(deltas):
        try:
            for opening in shape.opening():
                yield _event(opening)
            async for delta in deltas:
                chunk = shape.chunk(delta)
                if chunk is not None:
                    yield _event(chunk)
        except Exception as exc:
            log_if_ours(exc, request_id)
            yield _event(error_body(exc, request_id))
            return
        if include_usage:
            yield _event(shape.usage_chunk())
        yield DONE


async def wait_for_first(deltas: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Wait for the first item, then give a stream of all of them.

    What is refused before the first token can so still be answered with a status of its own.
    """
    first = await anext(deltas)

    async def all_items() -> AsyncGenerator[T, None]:
        async with aclosing(deltas):
            yield first
            async for item in deltas:
                yield item

    return all_items()


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the work, but cancel it when the client goes away.

    Raises:
        ClientDisconnect: the client went away; the work has been cancelled and has ended.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: Mapping[str, Any]) -> bytes:
    return (
        b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )
