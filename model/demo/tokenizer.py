"""Train the demo model's SentencePiece tokenizer on generated text.

A capital letter or a digit never shares a piece with the space or sign before it, so a name has
the same pieces after a space and after a quotation mark, and copying it means copying ids.
"""

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from model.demo.text import training_conversations

VOCAB_SIZE = 1_536
_NUM_CONVERSATIONS = 12_000
# No piece crosses this character, which never occurs in the text itself.
_BORDER = "\x1f"
_BORDERS = re.compile(r"(?:^|(?<= ))(?=[A-ZÀ-Þ0-9#])|(?<=\.)(?=[\",])|(?<=\")(?=#)")


def train_tokenizer(path: Path, seed: int = 0) -> None:
    """Write the SentencePiece model to `path`; the same bytes for the same seed."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=_sentences(seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pretokenization_delimiter=_BORDER,
        character_coverage=1.0,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def _sentences(seed: int) -> Iterator[str]:
    """The lines of generated conversations, as the template would show them."""
    for conversation in islice(training_conversations(seed, 256), _NUM_CONVERSATIONS):
        for turn in conversation.turns:
            prompt = f"[INST] {turn.user} [/INST]"
            for line in (prompt + "\n" + turn.assistant).splitlines():
                if line:
                    yield _BORDERS.sub(_BORDER, line)
