import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.detokenizer import Detokenizer, StopChecker
from model.tokenizer import mixtral_tokenizer

MIXTRAL = mixtral_tokenizer()
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


def stream(ids: list[int], continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(MIXTRAL, continues)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@given(texts)
def test_parts_add_up_to_the_text(text: str) -> None:
    parts = stream(MIXTRAL.encode(text, bos=True))

    assert "".join(parts) == text


@given(st.lists(st.integers(0, 31_999)))
def test_parts_of_any_ids_add_up_to_the_full_decode(ids: list[int]) -> None:
    assert "".join(stream(ids)) == MIXTRAL.decode(ids)


@given(texts)
def test_a_continuation_keeps_its_first_space(text: str) -> None:
    ids = MIXTRAL.encode(text, bos=False)

    assert "".join(stream(ids, continues=True)) == (f" {text}" if text else "")


@given(texts)
def test_no_part_holds_half_a_character(text: str) -> None:
    parts = stream(MIXTRAL.encode(text.replace("\ufffd", ""), bos=False))

    assert "\ufffd" not in "".join(parts)


def test_a_character_of_four_byte_tokens_comes_with_the_last_one() -> None:
    ids = MIXTRAL.encode("a\U0001f99c!", bos=False)

    assert stream(ids) == ["a", "", "", "", "\U0001f99c", "!", ""]


def test_half_a_character_at_the_end_is_shown_as_lost() -> None:
    ids = MIXTRAL.encode("a\U0001f99c", bos=False)

    assert stream(ids[:-1]) == ["a", "", "", "", "\ufffd"]


def test_end_of_sequence_has_no_text() -> None:
    assert stream([22557, 2]) == ["Hello", "", ""]


def check(parts: list[str], stop: list[str]) -> tuple[list[str], bool]:
    checker = StopChecker(stop)
    shown = []
    for part in parts:
        text, is_stopped = checker.push(part)
        shown.append(text)
        if is_stopped:
            return shown, True
    return [*shown, checker.flush()], False


@pytest.mark.parametrize(
    ("parts", "stop", "want", "is_stopped"),
    [
        (["one", " two"], [], ["one", " two", ""], False),
        (["one\n", "\ntwo"], ["\n\n"], ["one", ""], True),
        (["one\n", "two"], ["\n\n"], ["one", "\ntwo", ""], False),
        (["one\n"], ["\n\n"], ["one", "\n"], False),
        (["stop"], ["stop"], [""], True),
        (["aab"], ["ab"], ["a"], True),
        (["aa", "ab"], ["aab"], ["", "a"], True),
        (["x", "STOP", "y"], ["TO"], ["x", "S"], True),
        (["na\u00efve \U0001f99c"], ["\U0001f99c"], ["na\u00efve "], True),
    ],
)
def test_text_is_cut_before_the_stop_string(
    parts: list[str], stop: list[str], want: list[str], is_stopped: bool
) -> None:
    assert check(parts, stop) == (want, is_stopped)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert check(["abc"], ["abc", "b"]) == (["a"], True)
    assert check(["a", "b", "c"], ["abc", "b"]) == (["", "a"], True)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_cut_does_not_depend_on_how_the_text_is_split(text: str, stop: list[str]) -> None:
    whole, whole_stopped = check([text], stop)
    split, split_stopped = check(list(text), stop)

    assert ("".join(whole), whole_stopped) == ("".join(split), split_stopped)
    assert not any(item in "".join(split) for item in stop)
