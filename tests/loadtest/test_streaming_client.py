"""The measuring client, against a stub on a real socket."""

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.streaming_client import (
    BadAnswer,
    BrokenOff,
    ErrorEvent,
    Measurement,
    NoTokens,
    Refused,
    StreamFailure,
    StreamingClient,
    Unreachable,
)
from tests.loadtest.stub_server import DONE, MODEL, OPENING, Script, chunk, serving

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def client_of(url: str) -> Iterator[StreamingClient]:
    """A client whose clock gives 0, 1, 2, ... s, one for each time it is read."""
    client = StreamingClient(url, clock=itertools.count().__next__)
    try:
        yield client
    finally:
        client.close()


def ask(script: Script) -> Measurement:
    with serving(script) as url, client_of(url) as client:
        return client.chat(BODY)


def test_times_and_tokens_are_those_of_the_events_with_tokens() -> None:
    # The clock is read at the start (0) and for each event (1, 2, 3, 4, 5).
    events = (OPENING, chunk("a", [7]), chunk("bc", [8, 9]), chunk("", [2]), DONE)

    measured = ask(Script(events=events))

    assert measured == Measurement(ttft_s=2.0, itl_s=(0.5, 0.5, 1.0), e2e_s=5.0, num_tokens=4)
    assert measured.tokens_per_s == 1.5


def test_a_server_without_token_ids_is_counted_one_token_for_each_text() -> None:
    measured = ask(Script(events=(OPENING, chunk("a"), chunk("bc"), chunk(""), DONE)))

    assert (measured.num_tokens, len(measured.itl_s)) == (2, 1)


def test_one_event_has_no_decode_speed() -> None:
    measured = ask(Script(events=(chunk("ab", [7, 8]), DONE)))

    assert (measured.num_tokens, measured.itl_s, measured.tokens_per_s) == (2, (), None)


def test_the_request_asks_for_a_stream_with_token_ids() -> None:
    script = Script()

    ask(script)

    assert script.bodies == [{**BODY, "stream": True, "return_token_ids": True}]


def test_events_after_done_do_not_count() -> None:
    assert ask(Script(events=(chunk("a", [7]), DONE, "{"))).num_tokens == 1


@pytest.mark.parametrize(
    ("script", "failure", "message"),
    [
        (Script(status=503), Refused, "503 the queue is full"),
        (Script(events=(chunk("a", [7]),)), BrokenOff, r"without \[DONE\]"),
        (Script(events=(chunk("a", [7]),), is_cut=True), BrokenOff, "connection broke"),
        (Script(events=()), BrokenOff, r"without \[DONE\]"),
        (Script(events=(OPENING, DONE)), NoTokens, "no token"),
        (Script(events=("{", DONE)), BadAnswer, "JSONDecodeError"),
        (Script(events=("[]", DONE)), BadAnswer, "TypeError"),
        (Script(events=("{}", DONE)), BadAnswer, "KeyError"),
        (
            Script(events=(chunk("a", [7]), json.dumps({"error": {"message": "expert lost"}}))),
            ErrorEvent,
            "expert lost",
        ),
    ],
)
def test_an_answer_that_is_not_whole_is_a_failure(
    script: Script, failure: type[StreamFailure], message: str
) -> None:
    with pytest.raises(failure, match=message) as caught:
        ask(script)
    assert type(caught.value) is failure


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with client_of(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unreachable, match="ConnectionError"):
            client.chat(BODY)
        with pytest.raises(Unreachable, match="ConnectionError"):
            client.first_model()


def test_the_first_model_of_the_list_is_named() -> None:
    with serving(Script()) as url, client_of(url + "/") as client:
        assert client.first_model() == MODEL


def test_the_connection_is_used_again() -> None:
    script = Script()
    with serving(script) as url, client_of(url) as client:
        client.chat(BODY)
        client.chat(BODY)

    assert script.num_connections == 1


@pytest.mark.parametrize("models", ['{"data": []}', "[]", "{}", "<html>"])
def test_a_server_that_lists_no_model_is_a_failure(models: str) -> None:
    with serving(Script(models=models)) as url, client_of(url) as client:
        with pytest.raises(BadAnswer, match="no list of models"):
            client.first_model()


def test_a_failure_does_not_spoil_the_next_request() -> None:
    script = Script(events=(chunk("a", [7]),), is_cut=True)
    with serving(script) as url, client_of(url) as client:
        with pytest.raises(BrokenOff):
            client.chat(BODY)
        script.events, script.is_cut = (chunk("a", [7]), DONE), False

        assert client.chat(BODY).num_tokens == 1


def test_a_text_is_continued_and_the_server_s_own_count_of_tokens_counts() -> None:
    texts = [json.dumps({"choices": [{"index": 0, "text": text}]}) for text in ("a", "", "bc")]
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 5}})
    script = Script(events=(*texts, usage, DONE))

    with serving(script) as url, client_of(url) as client:
        measured = client.complete({"model": MODEL, "prompt": "hi"})

    assert script.paths == ["/v1/completions"]
    assert (measured.num_tokens, measured.ttft_s, measured.itl_s) == (5, 1, (2,))
