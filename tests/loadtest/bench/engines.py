"""An engine without a model, with a clock that only its steps move."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class FakeStream:
    num_tokens: int
    times_s: list[float] = field(default_factory=list)
    error: Exception | None = None


class FakeEngine:
    """Gives every stream a token a step; a step takes a second. Breaks after `max_steps`.

    Of those that still want tokens, at most `max_running` get one.
    """

    def __init__(self, max_steps: int = 1_000, max_running: int = 1_000) -> None:
        self.time_s = 0.0
        self.streams: list[FakeStream] = []
        self.prompts: list[list[int]] = []
        self._max_steps = max_steps
        self._max_running = max_running

    def now_s(self) -> float:
        return self.time_s

    @property
    def unfinished(self) -> list[FakeStream]:
        return [each for each in self.streams if len(each.times_s) < each.num_tokens]

    def add(self, prompt_ids: Sequence[int], num_tokens: int) -> FakeStream:
        self.prompts.append(list(prompt_ids))
        self.streams.append(FakeStream(num_tokens))
        return self.streams[-1]

    def step(self) -> None:
        self.time_s += 1.0
        for stream in self.unfinished[: self._max_running]:
            if self.time_s > self._max_steps:
                stream.error = RuntimeError("no more steps")
            else:
                stream.times_s.append(self.time_s)
