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
)
_QUESTION = "What is the pass key? The pass key is"


def passkey(rng: Random, split: Split, num_sentences: int, depth: float) -> Conversation:
    """A key of five digits among `num_sentences` filler sentences, `depth` (0 to 1) of the way."""
    key = draw(lambda: random_digits(rng, 5), split)
    start = rng.randrange(len(_FILLER))
    filler = [_FILLER[(start + i) % len(_FILLER)] for i in range(num_sentences)]
    if rng.random() < 0.3:
        rng.shuffle(filler)
    place = round(depth * num_sentences)
    hidden = f"The pass key is {key}. Remember it. {key} is the pass key."
    text = " ".join([*filler[:place], hidden, *filler[place:]])
    return single_turn("passkey", f"{_INTRODUCTION}\n\n{text}\n\n{_QUESTION}", f"{key}.")
