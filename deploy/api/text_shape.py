"""Deltas and whole choices to text answers."""

from collections.abc import Sequence

from cluster.engine.request import FinishReason, TokenEvent
from deploy.api.answer_shape import AnswerOptions, finite, token_ids_of, usage_of
from deploy.api.answers import (
    ChatChunk,
    Envelope,
    TextChoice,
    TextLogprobs,
    TextResponse,
)
from deploy.api.generation import Answer, Delta
from deploy.api.prompts import Choice
from model.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


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
            "usage": usage_of(self._choices, self._options, num_generated),
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
        usage = usage_of(self._choices, self._options, self._num_generated)
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
            choice["token_ids"] = token_ids_of(events)
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
            "token_logprobs": [finite(event.logprob) for event in events],
            "top_logprobs": [self._top_logprobs(event, num_logprobs) for event in events],
            "text_offset": offsets,
        }

    def _top_logprobs(self, event: TokenEvent, num_logprobs: int) -> dict[str, float]:
        """The most likely tokens, and the one that came in any case."""
        top = (*event.top_logprobs[:num_logprobs], (event.token_id, event.logprob))
        return {self._token(token_id): finite(logprob) for token_id, logprob in top}

    def _token(self, token_id: int) -> str:
        """A token's text; as in OpenAI's API, bytes of half a character have names of their own."""
        data = self._tokenizer.token_bytes(token_id)
        text = data.decode(errors="replace") or self._tokenizer.piece(token_id)
        return (
            "bytes:" + "".join(f"\\x{byte:02x}" for byte in data) if REPLACEMENT in text else text
        )
