"""Text to token ids and back, by the SentencePiece file of a checkpoint.

Knows pieces and bytes; knows nothing of chat templates, streams or requests.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

from model.errors import PromptError, TokenizerError

Mistral = MistralTokenizer[Any, Any, Any, Any, Any]

# A name with a version says which instruct template the model was trained on, so it goes first.
FILE_NAMES = ("tokenizer.model.v3", "tokenizer.model")
MAX_FILE_BYTES = 64 * 2**20

SPACE = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
LFS_POINTER = b"version https://git-lfs"


class Tokenizer:
    """The vocabulary of one checkpoint. Never changes; threads may share it.

    Attributes:
        mistral: mistral-common's tokenizer, which knows the chat template.
        longest_piece_bytes: most bytes of text that one token can stand for.
    """

    def __init__(self, mistral: Mistral, where: str) -> None:
        pieces = mistral.instruct_tokenizer.tokenizer
        if not isinstance(pieces, SentencePieceTokenizer):
            raise TokenizerError(f"{where}: not a SentencePiece model")
        if pieces.bos_id < 0 or pieces.eos_id < 0:
            raise TokenizerError(f"{where}: the pieces <s> and </s> are not defined")
        self.mistral = mistral
        self._where = where
        self._sentencepiece = pieces
        self._pieces = pieces.vocab()
        self._bytes = [self._read_bytes(token_id) for token_id in range(pieces.n_words)]
        self._hides_first_space = self._find_hides_first_space()
        self.longest_piece_bytes = max(len(data) for data in self._bytes)

    def __repr__(self) -> str:
        return f"<Tokenizer {self._where} vocab_size={self.vocab_size}>"

    @property
    def vocab_size(self) -> int:
        """Number of pieces, control pieces included."""
        return len(self._pieces)

    @property
    def bos_id(self) -> int:
        """The id of `<s>`."""
        return self._sentencepiece.bos_id

    @property
    def eos_id(self) -> int:
        """The id of `</s>`."""
        return self._sentencepiece.eos_id

    def check_fits(self, vocab_size: int) -> None:
        """Check against the model's embedding rows.

        Raises:
            TokenizerError: there are pieces that the model has no row for.
        """
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"{self._where}: {self.vocab_size} pieces, but the model has {vocab_size} "
                "embedding rows; the file belongs to another model"
            )

    def encode(self, text: str, bos: bool) -> list[int]:
        """Split text into token ids. Control pieces never come from text, however it is spelt.

        Raises:
            PromptError: the text holds half a surrogate pair.
        """
        check_unicode(text, "prompt")
        return self._sentencepiece.encode(text, bos=bos, eos=False)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Join the text of ids; control pieces give none, bytes of no character give U+FFFD."""
        data = bytearray()
        is_first = True
        for token_id in token_ids:
            data += self.token_bytes(token_id, is_first)
            is_first = is_first and not self.token_bytes(token_id)
        return data.decode(errors="replace")

    def token_bytes(self, token_id: int, is_first: bool = False) -> bytes:
        """Give the UTF-8 bytes that one token adds to a text.

        A model may have more rows than there are pieces: an id beyond them adds nothing.

        Args:
            is_first: no text comes before: the space that encoding puts there is left out.
        """
        if not 0 <= token_id < len(self._bytes):
            return b""
        if is_first and self._hides_first_space and self._pieces[token_id].startswith(SPACE):
            return self._bytes[token_id][1:]
        return self._bytes[token_id]

    def piece(self, token_id: int) -> str:
        """Give the name of a token, also of one that adds no text, such as `</s>`."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else ""

    def min_tokens(self, num_bytes: int) -> int:
        """Give a lower bound on the tokens of a text, without encoding it."""
        return num_bytes // self.longest_piece_bytes

    def _read_bytes(self, token_id: int) -> bytes:
        piece = self._pieces[token_id]
        if self._sentencepiece.is_special(token_id):
            return b""
        if token_id == self._sentencepiece.unk_id:
            return self._sentencepiece.decode([token_id]).encode()
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()

    def _find_hides_first_space(self) -> bool:
        """Whether encoding puts a space before the text, which decoding must take away."""
        for token_id, piece in enumerate(self._pieces):
            if piece.startswith(SPACE):
                return self._sentencepiece.decode([token_id]) != piece.replace(SPACE, " ")
        return False


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder, or one file.

    Raises:
        TokenizerError: there is none, or it cannot be read; names the file.
    """
    file = _find_file(path)
    _check_file(file)
    try:
        return Tokenizer(MistralTokenizer.from_file(file), str(file))
    except (RuntimeError, MistralCommonException, AssertionError, ValueError) as exc:
        raise TokenizerError(f"{file}: cannot be read as a SentencePiece model") from exc


def mixtral_tokenizer() -> Tokenizer:
    """Give the tokenizer of Mixtral 8x7B, 32,000 pieces, which mistral-common carries."""
    return Tokenizer(MistralTokenizer.v1(), "Mixtral")


def check_unicode(text: str, param: str) -> None:
    """Raise PromptError, naming `param`, if the text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise PromptError(
            f"{param}: half a surrogate pair at character {exc.start}", param, "invalid_unicode"
        ) from exc


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    raise TokenizerError(f"{path}: no tokenizer.model here; copy it from the model's repository")


def _check_file(file: Path) -> None:
    """Catch what needs no parser: empty, far too large, or a stand-in for the real file."""
    try:
        num_bytes = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as exc:
        raise TokenizerError(f"{file}: {exc.strerror}") from exc
    if start == LFS_POINTER:
        raise TokenizerError(f"{file}: a Git LFS pointer, not the file; run `git lfs pull`")
    if not 0 < num_bytes <= MAX_FILE_BYTES:
        raise TokenizerError(f"{file}: {num_bytes} bytes, want 1 to {MAX_FILE_BYTES}")
