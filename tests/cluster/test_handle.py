"""The Python handle's own part: what it asks for, and how it joins the pieces of an answer."""

from typing import Any

import pytest

from cluster.handle import Piece, _body, _join

MESSAGES = [{"role": "user", "content": "Hello"}]


def test_a_text_prompt_is_sent_with_its_options() -> None:
    assert _body("Hello", None, {"max_tokens": 3}) == {"prompt": "Hello", "max_tokens": 3}


def test_a_prompt_of_ids_becomes_a_list() -> None:
    assert _body((1, 2), None, {}) == {"prompt": [1, 2]}


def test_messages_become_a_list() -> None:
    assert _body(None, tuple(MESSAGES), {"seed": 1}) == {"messages": MESSAGES, "seed": 1}


@pytest.mark.parametrize("arguments", [(None, None), ("Hello", MESSAGES)])
def test_a_prompt_or_messages_is_wanted_and_not_both(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="want a prompt or messages, and not both"):
        _body(*arguments, {})


def test_pieces_are_joined_to_one() -> None:
    pieces = [Piece("Hel", (4,)), Piece("", (5,)), Piece("lo", (6, 2), "stop")]

    assert _join(pieces) == Piece("Hello", (4, 5, 6, 2), "stop")


def test_no_pieces_are_an_empty_one() -> None:
    assert _join([]) == Piece("", ())
