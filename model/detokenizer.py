"""The text of a stream of tokens, as it grows. Whole characters only; ends before a stop string."""

import codecs
from collections.abc import Sequence

from model.tokenizer import Tokenizer


class Detokenizer:
    """Text of one growing sequence. The parts that it gives add up to the text of all ids.

    Bytes go through an incremental UTF-8 decoder, so a token costs the same however long the
    sequence is, and half a character waits for its other half.

    Args:
        continues: the sequence goes on from other text, so its first space is kept.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = not continues

    def push(self, token_id: int) -> str:
        """Take one token and give the text that is complete with it."""
        data = self._tokenizer.token_bytes(token_id, is_first=self._is_first)
        # A token without text, or with only the hidden space, is not yet the start of the text,
        # but the space can be hidden once only.
        self._is_first = self._is_first and not self._tokenizer.token_bytes(token_id)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the sequence: bytes that never became a character give U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopChecker:
    """Cuts a growing text before the first stop string.

    Text that may be the start of a stop string is held back until it is known not to be.
    Of several stop strings, the one that is complete first wins, so that the result does not
    depend on how the text was split.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; give what may be shown, and whether a stop string was met."""
        text = self._held + text
        start = self._find_stop(text)
        if start is not None:
            self._held = ""
            return text[:start], True
        shown = len(text) - self._num_held(text)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """End the text: give what was held back."""
        held, self._held = self._held, ""
        return held

    def _find_stop(self, text: str) -> int | None:
        """Where the stop string that is complete first begins."""
        found = [(text.find(stop), stop) for stop in self._stop]
        ends = [(start + len(stop), start) for start, stop in found if start >= 0]
        return min(ends)[1] if ends else None

    def _num_held(self, text: str) -> int:
        """Length of the longest tail that a stop string starts with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
