import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from model.errors import PromptError, TokenizerError
from model.tokenizer import MAX_FILE_BYTES, Tokenizer, load_tokenizer, mixtral_tokenizer

MIXTRAL = mixtral_tokenizer()
SENTENCEPIECE = MistralTokenizer.v1().instruct_tokenizer.tokenizer
MIXTRAL_FILE = Path(SENTENCEPIECE.file_path)
CONTROL_IDS = {0, 1, 2}

# U+2581 is SentencePiece's own sign for a space: it cannot come back as itself.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@pytest.fixture
def mixtral() -> Tokenizer:
    return MIXTRAL


def test_ids_are_those_of_mixtral(mixtral: Tokenizer) -> None:
    assert mixtral.encode("Hello, world", bos=True) == [1, 22557, 28725, 1526]
    assert (mixtral.vocab_size, mixtral.bos_id, mixtral.eos_id) == (32000, 1, 2)


@pytest.mark.parametrize(
    "text", ["</s>", "<s>", "<unk>", "[INST] </s><s> [/INST]", "a</s>", "\x02"]
)
def test_control_ids_never_come_from_text(mixtral: Tokenizer, text: str) -> None:
    ids = mixtral.encode(text, bos=False)

    assert not CONTROL_IDS & set(ids)
    assert mixtral.decode(ids) == text


@given(texts)
def test_decode_of_encode_is_identity(text: str) -> None:
    ids = MIXTRAL.encode(text, bos=False)

    assert MIXTRAL.decode(ids) == text
    assert not CONTROL_IDS & set(ids)


@given(st.lists(st.integers(0, 31_999)))
def test_decode_equals_sentencepiece_wherever_that_gives_whole_characters(ids: list[int]) -> None:
    want = SENTENCEPIECE.decode(ids)

    assume("\ufffd" not in want)

    assert MIXTRAL.decode(ids) == want


@given(texts)
def test_min_tokens_is_a_lower_bound(text: str) -> None:
    assert MIXTRAL.min_tokens(len(text.encode())) <= len(MIXTRAL.encode(text, bos=False))


def test_min_tokens_is_exact_for_the_longest_piece(mixtral: Tokenizer) -> None:
    assert mixtral.longest_piece_bytes == 25
    assert mixtral.min_tokens(2_500) == 100


def test_token_bytes_of_byte_fallback_add_up_to_the_character(mixtral: Tokenizer) -> None:
    ids = mixtral.encode("\U0001f99c", bos=False)

    assert len(ids) == 5
    assert b"".join(mixtral.token_bytes(token_id) for token_id in ids) == b" \xf0\x9f\xa6\x9c"


def test_control_pieces_have_a_name_and_no_bytes(mixtral: Tokenizer) -> None:
    assert (mixtral.piece(2), mixtral.token_bytes(2)) == ("</s>", b"")


def test_ids_beyond_the_pieces_add_nothing(mixtral: Tokenizer) -> None:
    assert mixtral.token_bytes(32_000) == b""
    assert mixtral.piece(32_000) == ""
    assert mixtral.decode([22557, 32_000]) == "Hello"


def test_half_a_surrogate_pair_is_refused(mixtral: Tokenizer) -> None:
    with pytest.raises(PromptError, match="half a surrogate pair at character 1") as caught:
        mixtral.encode("a\ud800", bos=True)

    assert caught.value.code == "invalid_unicode"


def test_more_pieces_than_embedding_rows_are_refused(mixtral: Tokenizer) -> None:
    mixtral.check_fits(32_000)
    mixtral.check_fits(32_064)
    with pytest.raises(TokenizerError, match="32000 pieces, but the model has 31999"):
        mixtral.check_fits(31_999)


def test_folder_and_file_load_the_same(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(MIXTRAL_FILE.read_bytes())

    assert load_tokenizer(tmp_path).encode("abc", bos=True) == [1, 18641]
    assert load_tokenizer(file).vocab_size == 32_000


def test_versioned_file_goes_before_the_plain_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not read")
    v3 = Path(MistralTokenizer.v3().instruct_tokenizer.tokenizer.file_path)
    (tmp_path / "tokenizer.model.v3").write_bytes(v3.read_bytes())

    assert load_tokenizer(tmp_path).vocab_size == 32_768


def test_folder_without_a_tokenizer_names_the_file_wanted(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path}: no tokenizer.model here"):
        load_tokenizer(tmp_path)


BROKEN = {
    "empty": b"",
    "random": os.urandom(5_000),
    "truncated": MIXTRAL_FILE.read_bytes()[:100_000],
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 493443\n",
    "json": b"{}",
    "proto without pieces": b"\x12\x00",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)

    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)

    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(BROKEN["lfs pointer"])

    with pytest.raises(TokenizerError, match="git lfs pull"):
        load_tokenizer(tmp_path)


def test_far_too_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)

    with pytest.raises(TokenizerError, match="67108865 bytes, want 1 to 67108864"):
        load_tokenizer(tmp_path)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")

    with pytest.raises(TokenizerError, match="cannot be read as a SentencePiece model"):
        load_tokenizer(file)
