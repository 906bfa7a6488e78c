"""Conversations to token ids, exactly as mistral-common's first instruct template does.

Training needs millions of them, so this file calls SentencePiece itself; a test holds its ids
equal to mistral-common's.
"""

from dataclasses import dataclass

from sentencepiece import SentencePieceProcessor

from model.demo.conversation import Conversation

BOS_ID = 1
EOS_ID = 2


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a conversation and, for each id, the turn that it answers (-1: none)."""

    task: str
    ids: list[int]
    answers: list[int]


def encode(conversation: Conversation, processor: SentencePieceProcessor) -> Encoded:
    """`<s> [INST] user [/INST] answer</s>`, repeated from `[INST]` for further turns.

    With two turns whose answers have one token each, `answers` reads
    [-1, -1, ..., -1, 0, 0, -1, ..., -1, 1, 1]: the end of sequence belongs to its answer.
    """
    ids, answers = [BOS_ID], [-1]
    for number, turn in enumerate(conversation.turns):
        user = turn.user
        if number == 0 and conversation.system:
            user = f"{conversation.system}\n\n{user}"
        prompt_ids = processor.encode(f"[INST] {user} [/INST]")
        answer_ids = [*processor.encode(turn.assistant), EOS_ID]
        ids += prompt_ids + answer_ids
        answers += [-1] * len(prompt_ids) + [number] * len(answer_ids)
    return Encoded(conversation.task, ids, answers)
