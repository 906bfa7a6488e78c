"""The choices of a request to pieces of text, as the engine generates them.

Knows tokens and text; knows nothing of HTTP or of the shape of an answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from cluster.engine.request import FinishReason, GenerateRequest, TokenEvent
from cluster.errors import RequestFailed
from deploy.api.prompts import Choice
from deploy.api.service import ApiService
from model.detokenizer import Detokenizer, StopChecker
from model.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice gained: text that is final, and the tokens that came.

    The text may lag behind the tokens, while they are half a character or may become a stop string.
    """

    index: int
    text: str
    events: tuple[TokenEvent, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole choice."""

    text: str
    events: tuple[TokenEvent, ...]
    finish_reason: FinishReason


class ChoiceText:
    """The text of one growing choice, up to its stop string if there is one."""

    def __init__(self, tokenizer: Tokenizer, choice: Choice) -> None:
        self._index = choice.index
        self._detokenizer = Detokenizer(tokenizer, choice.continues)
        self._stop_checker = StopChecker(choice.stop)

    def take(self, events: Sequence[TokenEvent]) -> Delta:
        """Take tokens up to the last one of the answer; those after it are dropped."""
        text = ""
        for position, event in enumerate(events, start=1):
            shown, is_stopped = self._take(event)
            text += shown
            finish_reason = "stop" if is_stopped else event.finish_reason
            if finish_reason is not None:
                return Delta(self._index, text, tuple(events[:position]), finish_reason)
        return Delta(self._index, text, tuple(events))

    def _take(self, event: TokenEvent) -> tuple[str, bool]:
        text = self._detokenizer.push(event.token_id)
        if event.finish_reason is not None:
            text += self._detokenizer.flush()
        shown, is_stopped = self._stop_checker.push(text)
        if event.finish_reason is not None and not is_stopped:
            shown += self._stop_checker.flush()
        return shown, is_stopped


async def stream_choices(
    service: ApiService, choices: Sequence[Choice], request_id: str
) -> AsyncGenerator[Delta, None]:
    """Generate all choices at once, each delta as it comes. Closing it cancels them all.

    If one fails, the others are cancelled and its error is raised.
    """
    streams = [_stream_choice(service, choice, request_id) for choice in choices]
    async with aclosing(merge(streams)) as deltas:
        async for delta in deltas:
            yield delta


async def collect(deltas: AsyncGenerator[Delta, None], num_choices: int) -> list[Answer]:
    """Wait for whole answers, in the order of their choices."""
    parts: list[list[Delta]] = [[] for _ in range(num_choices)]
    async with aclosing(deltas):
        async for delta in deltas:
            parts[delta.index].append(delta)
    return [_join(deltas_of_one) for deltas_of_one in parts]


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Give the items of several streams as they come; close all when one fails."""
    if len(streams) == 1:  # most requests: no task for each item
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield item
        return
    waiting = {asyncio.create_task(_next(stream)): stream for stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream = waiting.pop(task)
                for item in task.result():
                    waiting[asyncio.create_task(_next(stream))] = stream
                    yield item
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[T, None]) -> list[T]:
    """Give the next item, or nothing at the end: a task cannot end in StopAsyncIteration."""
    async for item in stream:
        return [item]
    return []


async def _stream_choice(
    service: ApiService, choice: Choice, request_id: str
) -> AsyncGenerator[Delta, None]:
    text = ChoiceText(service.tokenizer, choice)
    request = GenerateRequest(
        request_id=f"{request_id}-{choice.index}",
        prompt_ids=choice.prompt_ids,
        params=choice.params,
        priority=choice.priority,
        cache_salt=choice.cache_salt,
    )
    async with aclosing(service.backend.stream(request)) as batches:
        async for events in batches:
            delta = text.take(events)
            yield delta
            if delta.finish_reason is not None:
                return
    raise RequestFailed(f"{request.request_id}: the tokens ended without a finish reason")


def _join(deltas: Sequence[Delta]) -> Answer:
    finish_reason = deltas[-1].finish_reason
    assert finish_reason is not None, deltas[-1]
    return Answer(
        "".join(delta.text for delta in deltas),
        tuple(event for delta in deltas for event in delta.events),
        finish_reason,
    )
