"""Exact accuracy on held-out conversations.

Greedy decoding gives exactly the wanted answer if and only if, with the wanted answer fed in, the
most likely token is the wanted one at each of its places. So one forward pass per batch decides,
without decoding token by token.
"""

from collections.abc import Sequence

import torch
from sentencepiece import SentencePieceProcessor

from model.demo.batches import pad
from model.demo.conversation import Conversation
from model.demo.network import Network
from model.demo.template import Encoded, encode

_ROWS_PER_BATCH = 16


@torch.no_grad()
def exact_answers(
    network: Network, processor: SentencePieceProcessor, conversations: Sequence[Conversation]
) -> list[bool]:
    """For each conversation, whether greedy decoding gives its last answer token for token."""
    encoded = [encode(conversation, processor) for conversation in conversations]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    verdicts = [False] * len(encoded)
    for start in range(0, len(order), _ROWS_PER_BATCH):
        chosen = order[start : start + _ROWS_PER_BATCH]
        for i, verdict in zip(chosen, _judge(network, [encoded[i] for i in chosen]), strict=True):
            verdicts[i] = verdict
    return verdicts


def _judge(network: Network, rows: Sequence[Encoded]) -> list[bool]:
    batch = pad(rows)
    hidden, _ = network(batch.ids_BS, batch.lengths_B)
    verdicts = []
    for i, row in enumerate(rows):
        last = max(row.answers)
        places = [place for place, turn in enumerate(row.answers) if turn == last]
        guesses = network.logits(hidden[i, [place - 1 for place in places]]).argmax(dim=-1)
        verdicts.append(guesses.tolist() == [row.ids[place] for place in places])
    return verdicts
