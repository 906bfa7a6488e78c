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

from deploy.api.answer_shape import AnswerShape
from deploy.api.errors import error_body, log_if_ours
from deploy.api.generation import Delta

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class EventStream(Response):
    """A response that sends events as tokens come. Cancels them when the client goes away.

    The first tokens are waited for before anything is sent: what is refused until then is raised,
    and can be answered with a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        shape: AnswerShape,
        deltas: AsyncGenerator[Delta, None],
        include_usage: bool,
        request_id: str,
    ) -> None:
        # Proxies must neither store the events nor collect them into larger pieces.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._shape = shape
        self._deltas = deltas
        self._include_usage = include_usage
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything.

        Raises:
            ClientDisconnect: the client went away first; its tokens have been cancelled.
        """
        try:
            await unless_disconnected(receive, self._send_all(send))
        finally:
            await self._deltas.aclose()

    async def _send_all(self, send: Send) -> None:
        first = await anext(self._deltas)
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with aclosing(self._events(first)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self, first: Delta) -> AsyncGenerator[bytes, None]:
        for opening in self._shape.opening():
            yield _event(opening)
        try:
            for event in self._shown(first):
                yield event
            async for delta in self._deltas:
                for event in self._shown(delta):
                    yield event
        except Exception as exc:
            log_if_ours(exc, self._request_id)
            yield _event(error_body(exc, self._request_id))
            return
        if self._include_usage:
            yield _event(self._shape.usage_chunk())
        yield DONE

    def _shown(self, delta: Delta) -> list[bytes]:
        chunk = self._shape.chunk(delta)
        return [] if chunk is None else [_event(chunk)]


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
    return b"data: " + ENCODER.encode(data).encode() + b"\n\n"
