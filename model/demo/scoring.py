"""Exact accuracy on held-out conversations.

Greedy decoding gives exactly the wanted answer if and only if, with the wanted answer fed in, the
most likely token is the wanted one at each of its places. So one forward pass per batch decides,
without decoding token by token.
"""

from collections.abc import Iterable, Sequence

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from model.demo.batches import pack
from model.demo.conversation import Conversation
from model.demo.network import Network
from model.demo.template import Encoded, encode

_ROWS_PER_BATCH = 16


@torch.no_grad()
def exact_answers(
    network: Network, processor: SentencePieceProcessor, conversations: Iterable[Conversation]
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
    batch = pack(rows)
    hidden, _ = network(batch.ids_T, batch.lengths_B)
    guesses = torch.split(network.logits(hidden).argmax(dim=-1), batch.lengths_B.tolist())
    return [_is_right(row, row_guesses) for row, row_guesses in zip(rows, guesses, strict=True)]


def _is_right(row: Encoded, guesses: Tensor) -> bool:
    """Compare the last answer; the guess for a place stands one place earlier."""
    last = max(row.answers)
    places = [place for place, turn in enumerate(row.answers) if turn == last]
    return all(int(guesses[place - 1]) == row.ids[place] for place in places)
