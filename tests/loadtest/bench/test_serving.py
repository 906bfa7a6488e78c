import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from loadtest.bench.cells import ITL_S, TOKENS_PER_S, TTFT_S
from loadtest.bench.checkpoints import TOKENIZER
from loadtest.bench.serving import WrongLength, is_ready, measure_server, prompts_of, values_of
from loadtest.streaming_client import Measurement, Refused
from tests.loadtest.bench.records import cell
from tests.loadtest.stub_server import DONE, Script, serving

TWO_TOKENS = [json.dumps({"choices": [{"index": 0, "text": text}]}) for text in ("a", "b")]
USAGE = json.dumps({"choices": [], "usage": {"completion_tokens": 2}})
OF = cell("server", batch=3, prompt_tokens=8, new_tokens=2)


@pytest.fixture
def script() -> Script:
    return Script(events=(*TWO_TOKENS, USAGE, DONE))


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with serving(script) as address:
        yield address


def test_prompts_have_exactly_as_many_tokens_as_asked_for() -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))

    prompts = prompts_of(TOKENIZER, 5, 20, seed=1)

    # The id that begins a text is the server's to add.
    assert [len(pieces.encode(prompt)) for prompt in prompts] == [19] * 5
    assert len(set(prompts)) == 5


def test_prompts_are_the_same_for_everybody_and_others_in_another_round() -> None:
    first, same, other = (prompts_of(TOKENIZER, 2, 20, seed) for seed in (1, 1, 2))

    assert first == same
    assert not set(first) & set(other)


def test_every_stream_is_asked_for_the_same_length_after_a_warm_up(
    script: Script, url: str
) -> None:
    # The stub gives two tokens to whoever asks, the warm-up too.
    measure_server(url, OF, TOKENIZER, seed=1)

    assert [body["max_tokens"] for body in script.bodies] == [4, 4, 2, 2, 2]
    assert len({body["prompt"] for body in script.bodies}) == 5
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in script.bodies)


def test_a_server_s_values_are_a_rate_first_latencies_and_latencies_between_tokens() -> None:
    measured = [
        Measurement(ttft_s=0.5, itl_s=(0.1, 0.3), e2e_s=1.0, num_tokens=3),
        Measurement(ttft_s=0.7, itl_s=(0.2, 0.4), e2e_s=1.4, num_tokens=3),
    ]

    values = values_of(measured, 1.5, 3)

    assert values == {
        TOKENS_PER_S: [4.0],
        TTFT_S: [0.5, 0.7],
        ITL_S: [0.1, 0.3, 0.2, 0.4],
    }


def test_an_answer_of_another_length_is_no_figure(url: str) -> None:
    with pytest.raises(WrongLength, match="2 of 3 tokens"):
        measure_server(url, cell("server", batch=1, prompt_tokens=8, new_tokens=3), TOKENIZER, 1)


def test_one_stream_that_is_refused_fails_the_cell(script: Script, url: str) -> None:
    script.status = 429

    with pytest.raises(Refused):
        measure_server(url, OF, TOKENIZER, seed=1)


def test_a_server_is_ready_once_it_generates(script: Script, url: str) -> None:
    assert is_ready(url)
    script.status = 503
    assert not is_ready(url)


def test_nobody_listens_and_nobody_is_ready(tmp_path: Path) -> None:
    assert not is_ready("http://127.0.0.1:1")
