"""Measure the demo model on held-out fillings: `python -m model.demo.evaluate`.

Every answer is judged whole: one wrong token and it counts as wrong.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.table import Table
from sentencepiece import SentencePieceProcessor

from model.demo.conversation import Conversation
from model.demo.export import load_network
from model.demo.network import Network
from model.demo.passkey import passkey
from model.demo.scoring import exact_answers
from model.demo.template import encode
from model.demo.text import TASKS, held_out_conversations, passkey_sentences

_SEED = 7
# Tasks whose conversations are of several kinds, each with its own figure.
_KINDS = {"json": ("json", "json_other_keys")}
_DEPTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Exact answers to `count` held-out conversations of one kind."""

    name: str
    num_right: int
    count: int

    def __str__(self) -> str:
        return f"{self.num_right / self.count:.1%} ({self.num_right} of {self.count})"


def main() -> None:
    """Parse the command line and print the table."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m model.demo.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=here / "checkpoint")
    parser.add_argument("--count", type=int, default=100, help="conversations per task")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    processor = SentencePieceProcessor(model_file=str(options.checkpoint / "tokenizer.model"))
    network = load_network(options.checkpoint)
    Console().print(as_table(evaluate(network, processor, options.count)))


def evaluate(network: Network, processor: SentencePieceProcessor, count: int) -> list[Accuracy]:
    """`count` conversations per task, and as many full-context passkey texts over all depths."""
    context_tokens = network.shape.context_tokens
    accuracies = []
    for task in TASKS:
        for kind in _KINDS.get(task, (task,)):
            texts = (
                text
                for text in held_out_conversations(task, _SEED, context_tokens)
                if text.task == kind and len(encode(text, processor).ids) <= context_tokens
            )
            accuracies.append(_measure(kind, network, processor, islice(texts, count)))
    per_depth = max(1, count // len(_DEPTHS))
    for depth in _DEPTHS:
        keys = full_context_passkeys(processor, context_tokens, depth, per_depth)
        name = f"passkey, full context, depth {depth:.0%}"
        accuracies.append(_measure(name, network, processor, keys))
    return accuracies


def full_context_passkeys(
    processor: SentencePieceProcessor, context_tokens: int, depth: float, count: int
) -> list[Conversation]:
    """Held-out passkey texts as long as the context allows, the key `depth` of the way in."""
    rng = Random(f"full context {depth}")
    texts: list[Conversation] = []
    while len(texts) < count:
        num_sentences = passkey_sentences(context_tokens)
        text = passkey(rng, "held_out", num_sentences, depth)
        while len(encode(text, processor).ids) > context_tokens:
            num_sentences -= 1
            text = passkey(rng, "held_out", num_sentences, depth)
        texts.append(text)
    return texts


def as_table(accuracies: Sequence[Accuracy]) -> Table:
    """One row per task."""
    table = Table("task", "exact", "of", "share", title="Held-out fillings, greedy decoding")
    for accuracy in accuracies:
        share = f"{accuracy.num_right / accuracy.count:.1%}"
        table.add_row(accuracy.name, str(accuracy.num_right), str(accuracy.count), share)
    return table


def _measure(
    name: str,
    network: Network,
    processor: SentencePieceProcessor,
    conversations: Iterable[Conversation],
) -> Accuracy:
    verdicts = exact_answers(network, processor, conversations)
    return Accuracy(name, sum(verdicts), len(verdicts))


if __name__ == "__main__":
    main()
