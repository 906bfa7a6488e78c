"""Named workloads: how long prompts are and how much is asked for. Fixed by name and seed.

Prompts are English words drawn at random, so no server can answer one from a cache of another.
Lengths are in words and tokens; how many tokens a word makes is the tokenizer's business.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = (
    "able about after again also answer area back because before begin black book both bring "
    "call change city come country day door down each early earth end even every example eye face "
    "family far find first follow food four friend give good great group hand head hear help high "
    "home house idea keep kind know large last late learn leave letter life light line list little "
    "long look made man many mean mile money morning most mother move much music name near need "
    "never new next night number often old only open other over own page paper part people place "
    "plant play point question quick read right river room run same school sea second see sentence "
    "small sound story study table take tell thing think three time tree turn under use very voice "
    "walk want water way week white whole why wind word work world write year young"
).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """A log-normal distribution of whole numbers, cut to `low`..`high`; spread 0 is a constant."""

    median: int
    spread: float
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.median <= self.high:
            raise ValueError(f"want 1 <= {self.low} <= {self.median} <= {self.high}")

    def draw(self, rng: random.Random) -> int:
        """Draw one length."""
        drawn = round(self.median * rng.lognormvariate(0.0, self.spread))
        return min(max(drawn, self.low), self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests alike."""

    prompt_words: Lengths
    output_tokens: Lengths

    def request(self, rng: random.Random, max_tokens: int | None = None) -> dict[str, Any]:
        """Draw the body of one chat request, all but the model's name.

        Answers have the length that was drawn: the end token does not end them. `max_tokens` cuts
        longer ones.
        """
        words = rng.choices(WORDS, k=self.prompt_words.draw(rng))
        num_tokens = self.output_tokens.draw(rng)
        return {
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": num_tokens if max_tokens is None else min(num_tokens, max_tokens),
            "temperature": 0.0,
            "ignore_eos": True,
        }


# All but `rag` fit a context of 1,024 tokens, the demo model's.
WORKLOADS: Mapping[str, Workload] = {
    "fixed": Workload(
        prompt_words=Lengths(median=32, spread=0.0, low=32, high=32),
        output_tokens=Lengths(median=32, spread=0.0, low=32, high=32),
    ),
    "short": Workload(
        prompt_words=Lengths(median=8, spread=0.4, low=3, high=20),
        output_tokens=Lengths(median=16, spread=0.4, low=4, high=32),
    ),
    "chat": Workload(
        prompt_words=Lengths(median=40, spread=0.8, low=4, high=160),
        output_tokens=Lengths(median=64, spread=0.6, low=8, high=192),
    ),
    "long_prompt": Workload(
        prompt_words=Lengths(median=180, spread=0.2, low=120, high=220),
        output_tokens=Lengths(median=16, spread=0.3, low=4, high=32),
    ),
    "rag": Workload(
        prompt_words=Lengths(median=2_000, spread=0.3, low=1_000, high=6_000),
        output_tokens=Lengths(median=128, spread=0.4, low=32, high=512),
    ),
}
