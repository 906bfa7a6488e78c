"""How many prompt tokens a step may carry beside tokens that people are waiting to read.

A long prompt must not hold up the streams that run: a step with a piece of it takes at most
`MAX_SLOWDOWN` times as long as one without. How long each takes is learnt from the steps
themselves. A short prompt goes in whole: in pieces it would cost the streams as much time, only
later, and itself more. Never looks at a clock; it is told.
"""

MAX_SLOWDOWN = 1.8
MIN_PROMPT_TOKENS = 8
NEW_WEIGHT = 0.25


class Pace:
    """Mutable state: moving means of a plain step's time and of a prompt token's, in seconds."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._decode_s: float | None = None
        self._prompt_token_s: float | None = None

    def observe(self, num_decodes: int, num_prompt_tokens: int, step_s: float) -> None:
        """Learn from a step."""
        if num_prompt_tokens == 0:
            self._decode_s = _mean(self._decode_s, step_s)
        else:
            rest_s = step_s - (self._decode_s or 0.0) * (num_decodes > 0)
            token_s = max(rest_s, 0.1 * step_s) / num_prompt_tokens
            self._prompt_token_s = _mean(self._prompt_token_s, token_s)

    @property
    def short_tokens(self) -> int:
        """Most tokens of a prompt that counts as short."""
        return self._step_tokens // 2

    def tokens_at_once(self, num_decodes: int) -> int:
        """Most prompt tokens of the next step, as long as they complete short prompts."""
        return min(self.short_tokens, self._room(num_decodes))

    def prompt_tokens(self, num_decodes: int) -> int:
        """Most prompt tokens of the next step, beside so many decodes, whatever they are of."""
        room = self._room(num_decodes)
        if num_decodes == 0 or self._decode_s is None or self._prompt_token_s is None:
            return room
        fitting = int((MAX_SLOWDOWN - 1) * self._decode_s / self._prompt_token_s)
        return min(max(fitting, MIN_PROMPT_TOKENS), room)

    def _room(self, num_decodes: int) -> int:
        return max(self._step_tokens - num_decodes, 1)


def share(wanted: list[int], budget: int) -> list[int]:
    """Part `budget` prompt tokens among prompts, given the tokens each still wants, oldest first.

    The oldest gets half at least, so that none starves; the rest goes to the shortest, so that a
    long prompt holds up nobody behind it. Wanted 4000, 90, 20 of a budget of 100: 50, 30, 20.
    """
    granted = [0] * len(wanted)
    if wanted:
        granted[0] = min(wanted[0], -(-budget // 2))
    for index in [*sorted(range(1, len(wanted)), key=wanted.__getitem__), 0]:
        if index < len(wanted):
            granted[index] += min(wanted[index] - granted[index], budget - sum(granted))
    return granted


def complete(granted: list[int], wanted: list[int], most: int) -> list[int]:
    """Give the shortest prompts all that they want, as far as `most` tokens in all reach.

    Granted 50, 30, 20 of 200, 90, 20, at most 200: 50, 90, 20.
    """
    granted = list(granted)
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        if sum(granted) + wanted[index] - granted[index] <= most:
            granted[index] = max(granted[index], wanted[index])
    return granted


def _mean(mean: float | None, new: float) -> float:
    return new if mean is None else mean + NEW_WEIGHT * (new - mean)
