"""Passkey retrieval: a number hidden at some depth of a text that says nothing else."""

from random import Random

from model.demo.conversation import Conversation, single_turn
from model.demo.fillings import Split, draw, random_digits

_INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
_FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
    "The sea is deep.",
    "The night is dark.",
    "Snow falls in the winter.",
)
_NUM_CUSTOMARY = 5
_QUESTIONS = (
    "What is the pass key? The pass key is",
    "What is the pass key? The pass key is",
    "What is the pass key?",
    "Tell me the pass key.",
)


def passkey(rng: Random, split: Split, num_sentences: int, depth: float) -> Conversation:
    """A key of five digits among `num_sentences` filler sentences, `depth` (0 to 1) of the way."""
    key = draw(lambda: random_digits(rng, 5), split)
    filler = _filler(rng, num_sentences)
    place = round(depth * num_sentences)
    hidden = f"The pass key is {key}. Remember it. {key} is the pass key."
    text = " ".join([*filler[:place], hidden, *filler[place:]])
    return single_turn(
        "passkey", f"{_INTRODUCTION}\n\n{text}\n\n{rng.choice(_QUESTIONS)}", f"{key}."
    )


def _filler(rng: Random, num_sentences: int) -> list[str]:
    """Mostly the five customary sentences round and round, else any in any order."""
    if rng.random() < 0.3:
        return rng.choices(_FILLER, k=num_sentences)
    start = rng.randrange(_NUM_CUSTOMARY)
    return [_FILLER[(start + i) % _NUM_CUSTOMARY] for i in range(num_sentences)]
