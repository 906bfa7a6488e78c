"""Repeat a text word for word: the plainest exercise in copying from the prompt."""

from random import Random

from model.demo.conversation import Conversation, single_turn
from model.demo.fillings import Split, draw, random_digits, random_word

_PROMPTS = (
    "Repeat the following text exactly: {text}",
    "Say this again, word for word: {text}",
    "{text}\n\nRepeat the text above.",
    "Repeat: {text}",
    "Repeat after me: {text}",
    "Copy this text: {text}",
)


def repetition(rng: Random, split: Split) -> Conversation:
    """Three to twelve random words and numbers to be said again."""
    num_words = rng.randint(3, 12)
    text = draw(lambda: " ".join(_word(rng) for _ in range(num_words)), split)
    return single_turn("repeat", rng.choice(_PROMPTS).format(text=text), text)


def _word(rng: Random) -> str:
    style = rng.random()
    if style < 0.2:
        return random_digits(rng, rng.randint(1, 5))
    word = random_word(rng)
    return word.capitalize() if style < 0.7 else word
