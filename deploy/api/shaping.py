"""Deltas and whole choices to the answers of the OpenAI-style API."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.engine.request import FinishReason, TokenEvent
from deploy.api.answers import (
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatResponse,
    Envelope,
    TextChoice,
    TextLogprobs,
    TextResponse,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from deploy.api.generation import Answer, Delta
from deploy.api.prompts import Choice
from model.tokenizer import Tokenizer

# JSON has no infinity; OpenAI writes an impossible token's log-probability so.
LOWEST_LOGPROB = -9999.0
REPLACEMENT = "\ufffd"


class AnswerShape(Protocol):
    """How the choices of one request become whole answers or chunks."""

    def response(self, answers: Sequence[Answer]) -> ChatResponse | TextResponse:
        """Make the whole answer."""
        ...

    def opening(self) -> list[ChatChunk]:
        """Make the chunks that come before any text."""
        ...

    def chunk(self, delta: Delta) -> ChatChunk | TextResponse | None:
        """Make one chunk; None if the delta has nothing to show."""
        ...

    def usage_chunk(self) -> ChatChunk | TextResponse:
        """Make the last chunk, which counts the tokens of all chunks before."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What the client asked to have in its answer.

    Attributes:
        num_per_prompt: choices of each prompt.
    """

    num_per_prompt: int
    include_usage: bool
    return_token_ids: bool


class ChatShape:
    """Chat answers and chunks of one request."""

    def __init__(
        self,
        envelope: Envelope,
        choices: Sequence[Choice],
        options: AnswerOptions,
        tokenizer: Tokenizer,
    ) -> None:
        self._envelope = envelope
        self._choices = choices
        self._options = options
        self._tokenizer = tokenizer
        self._num_generated = 0

    def response(self, answers: Sequence[Answer]) -> ChatResponse:
        """Make the whole answer."""
        num_generated = sum(len(answer.events) for answer in answers)
        response: ChatResponse = {
            **self._envelope,
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": _usage(self._choices, self._options, num_generated),
        }
        if self._options.return_token_ids:
            response["prompt_token_ids"] = list(self._choices[0].prompt_ids)
        return response

    def opening(self) -> list[ChatChunk]:
        """Make one chunk for each choice that says who speaks."""
        chunks = []
        for choice in self._choices:
            delta: ChatDelta = {"role": "assistant", "content": ""}
            chunks.append(self._chunk(choice.index, delta, None, None))
        if self._options.return_token_ids:
            chunks[0]["prompt_token_ids"] = list(self._choices[0].prompt_ids)
        return chunks

    def chunk(self, delta: Delta) -> ChatChunk | None:
        """Make one chunk; None if the delta has nothing to show."""
        self._num_generated += len(delta.events)
        logprobs = self._logprobs(delta.index, delta.events)
        shows_tokens = self._options.return_token_ids or logprobs is not None
        if not delta.text and delta.finish_reason is None and not shows_tokens:
            return None
        content: ChatDelta = {"content": delta.text} if delta.text else {}
        chunk = self._chunk(delta.index, content, logprobs, delta.finish_reason)
        if self._options.return_token_ids:
            chunk["choices"][0]["token_ids"] = _token_ids(delta.events)
        return chunk

    def usage_chunk(self) -> ChatChunk:
        """Make the last chunk, which counts the tokens of all chunks before."""
        return {
            **self._envelope,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": _usage(self._choices, self._options, self._num_generated),
        }

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        choice: ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(index, answer.events),
            "finish_reason": answer.finish_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = _token_ids(answer.events)
        return choice

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None,
        finish_reason: FinishReason | None,
    ) -> ChatChunk:
        chunk: ChatChunk = {
            **self._envelope,
            "object": "chat.completion.chunk",
            "choices": [
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }
            ],
        }
        if self._options.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, index: int, events: Sequence[TokenEvent]) -> ChatLogprobs | None:
        num_logprobs = self._choices[index].params.num_logprobs
        if num_logprobs is None:
            return None
        content: list[TokenLogprob] = [
            {
                **self._top_logprob(event.token_id, event.logprob),
                "top_logprobs": [
                    self._top_logprob(token_id, logprob)
                    for token_id, logprob in event.top_logprobs[:num_logprobs]
                ],
            }
            for event in events
        ]
        return {"content": content, "refusal": None}

    def _top_logprob(self, token_id: int, logprob: float | None) -> TopLogprob:
        data = self._tokenizer.token_bytes(token_id)
        return {
            "token": data.decode(errors="replace") or self._tokenizer.piece(token_id),
            "logprob": _finite(logprob),
            "bytes": list(data) or None,
        }


class TextShape:
    """Text answers and chunks of one request."""

    def __init__(
        self,
        envelope: Envelope,
        choices: Sequence[Choice],
        options: AnswerOptions,
        tokenizer: Tokenizer,
    ) -> None:
        self._envelope = envelope
        self._choices = choices
        self._options = options
        self._tokenizer = tokenizer
        self._num_generated = 0
        # Per choice: where the next token's text begins, and whether a chunk was sent.
        self._text_offsets = [0] * len(choices)
        self._has_begun = [False] * len(choices)

    def response(self, answers: Sequence[Answer]) -> TextResponse:
        """Make the whole answer."""
        num_generated = sum(len(answer.events) for answer in answers)
        return {
            **self._envelope,
            "choices": [
                self._choice(index, answer.text, answer.events, answer.finish_reason)
                for index, answer in enumerate(answers)
            ],
            "usage": _usage(self._choices, self._options, num_generated),
        }

    def opening(self) -> list[ChatChunk]:
        """Make no chunk: a text stream begins with text."""
        return []

    def chunk(self, delta: Delta) -> TextResponse | None:
        """Make one chunk; None if the delta has nothing to show."""
        self._num_generated += len(delta.events)
        choice = self._choice(delta.index, delta.text, delta.events, delta.finish_reason)
        shows_tokens = self._options.return_token_ids or choice["logprobs"] is not None
        if not delta.text and delta.finish_reason is None and not shows_tokens:
            return None
        chunk: TextResponse = {**self._envelope, "choices": [choice]}
        if self._options.include_usage:
            chunk["usage"] = None
        return chunk

    def usage_chunk(self) -> TextResponse:
        """Make the last chunk, which counts the tokens of all chunks before."""
        usage = _usage(self._choices, self._options, self._num_generated)
        return {**self._envelope, "choices": [], "usage": usage}

    def _choice(
        self,
        index: int,
        text: str,
        events: Sequence[TokenEvent],
        finish_reason: FinishReason | None,
    ) -> TextChoice:
        choice: TextChoice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, events),
            "finish_reason": finish_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = _token_ids(events)
            if not self._has_begun[index]:
                choice["prompt_token_ids"] = list(self._choices[index].prompt_ids)
        self._has_begun[index] = True
        return choice

    def _logprobs(self, index: int, events: Sequence[TokenEvent]) -> TextLogprobs | None:
        num_logprobs = self._choices[index].params.num_logprobs
        if num_logprobs is None:
            return None
        tokens = [self._token(event.token_id) for event in events]
        offsets = []
        for token in tokens:
            offsets.append(self._text_offsets[index])
            self._text_offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(event.logprob) for event in events],
            "top_logprobs": [self._top_logprobs(event, num_logprobs) for event in events],
            "text_offset": offsets,
        }

    def _top_logprobs(self, event: TokenEvent, num_logprobs: int) -> dict[str, float]:
        """The most likely tokens, and the one that came in any case."""
        top = (*event.top_logprobs[:num_logprobs], (event.token_id, event.logprob))
        return {self._token(token_id): _finite(logprob) for token_id, logprob in top}

    def _token(self, token_id: int) -> str:
        """A token's text; as in OpenAI's API, bytes of half a character have names of their own."""
        data = self._tokenizer.token_bytes(token_id)
        text = data.decode(errors="replace") or self._tokenizer.piece(token_id)
        return (
            "bytes:" + "".join(f"\\x{byte:02x}" for byte in data) if REPLACEMENT in text else text
        )


def _usage(choices: Sequence[Choice], options: AnswerOptions, num_generated: int) -> Usage:
    prompts = choices[:: options.num_per_prompt]
    num_prompt = sum(len(choice.prompt_ids) for choice in prompts)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def _token_ids(events: Sequence[TokenEvent]) -> list[int]:
    return [event.token_id for event in events]


def _finite(logprob: float | None) -> float:
    return LOWEST_LOGPROB if logprob is None else max(logprob, LOWEST_LOGPROB)
