"""The mix of tasks that the demo model learns, and where its evaluation examples come from.

Everything is generated from a seed; nothing is downloaded and training never sees a filling twice
on purpose. Knows no tokenizer: `template.py` turns conversations into token ids.
"""

from collections.abc import Iterator
from random import Random

from model.demo.conversation import Conversation
from model.demo.extraction import extraction, few_shot
from model.demo.facts import fact, small_talk
from model.demo.fillings import Split
from model.demo.functions import function
from model.demo.passkey import passkey
from model.demo.repetition import repetition
from model.demo.safety import moderation, refusal

# Share of each task among the training conversations. Copying from the prompt is the hard part,
# so the tasks that need it are most of the mix.
TRAINING_MIX = {
    "json": 0.26,
    "few_shot_json": 0.14,
    "passkey": 0.12,
    "repeat": 0.12,
    "function": 0.10,
    "refusal": 0.08,
    "moderation": 0.08,
    "fact": 0.07,
    "small_talk": 0.03,
}
TASKS = tuple(TRAINING_MIX)

# Rough lengths in tokens, to choose a passkey text that may fit; whoever asks drops the others.
_PASSKEY_FRAME_TOKENS = 85
_TOKENS_PER_SENTENCE = 5


def passkey_sentences(context_tokens: int) -> int:
    """How many filler sentences fill at least `context_tokens` tokens."""
    return max(2, (context_tokens - _PASSKEY_FRAME_TOKENS) // _TOKENS_PER_SENTENCE)


def make(task: str, rng: Random, split: Split, context_tokens: int) -> Conversation:
    """One conversation of `task` with fillings of `split`.

    Raises:
        ValueError: `task` is not one of `TASKS`.
    """
    if task == "passkey":
        num_sentences = rng.randint(1, passkey_sentences(context_tokens))
        return passkey(rng, split, num_sentences, rng.random())
    if task == "small_talk":
        return small_talk(rng)
    makers = {
        "json": extraction,
        "few_shot_json": few_shot,
        "repeat": repetition,
        "function": function,
        "refusal": refusal,
        "moderation": moderation,
        "fact": fact,
    }
    if task not in makers:
        raise ValueError(f"task: got {task!r}, want one of {', '.join(TASKS)}")
    return makers[task](rng, split)


def training_conversations(seed: int | str, context_tokens: int) -> Iterator[Conversation]:
    """Training conversations without end, the same for the same arguments."""
    rng = Random(seed)
    weights = list(TRAINING_MIX.values())
    while True:
        (task,) = rng.choices(TASKS, weights)
        yield make(task, rng, "train", context_tokens)


def held_out_conversations(task: str, seed: int, context_tokens: int) -> Iterator[Conversation]:
    """Conversations of `task` without end, with fillings that training never uses."""
    rng = Random(f"held out {task} {seed}")
    while True:
        yield make(task, rng, "held_out", context_tokens)
