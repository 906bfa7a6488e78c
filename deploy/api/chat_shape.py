"""Deltas and whole choices to chat answers."""

from collections.abc import Sequence

from cluster.engine.request import FinishReason, TokenEvent
from deploy.api.answer_shape import AnswerOptions, finite, token_ids_of, usage_of
from deploy.api.answers import (
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatResponse,
    Envelope,
    TokenLogprob,
    TopLogprob,
)
from deploy.api.generation import Answer, Delta
from deploy.api.prompts import Choice
from model.tokenizer import Tokenizer


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
            "usage": usage_of(self._choices, self._options, num_generated),
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
            chunk["choices"][0]["token_ids"] = token_ids_of(delta.events)
        return chunk

    def usage_chunk(self) -> ChatChunk:
        """Make the last chunk, which counts the tokens of all chunks before."""
        return {
            **self._envelope,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage_of(self._choices, self._options, self._num_generated),
        }

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        choice: ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(index, answer.events),
            "finish_reason": answer.finish_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = token_ids_of(answer.events)
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
            "logprob": finite(logprob),
            "bytes": list(data) or None,
        }
