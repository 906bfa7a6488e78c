"""One training or evaluation example: a short conversation.

Knows no tokenizer; `template.py` turns it into token ids.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says and the only right answer to it."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of one task, with the system prompt that precedes them, if any."""

    task: str
    turns: tuple[Turn, ...]
    system: str | None = None


def single_turn(task: str, user: str, assistant: str, system: str | None = None) -> Conversation:
    """A conversation of one question and its answer."""
    return Conversation(task, (Turn(user, assistant),), system)
