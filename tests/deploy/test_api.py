import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster.engine.request import GenerateRequest
from cluster.errors import NotReady
from deploy.api.routes import create_app
from model.sampling_params import MAX_SEED, SamplingParams
from tests.deploy.fakes import (
    EOS_ID,
    MODEL,
    FakeBackend,
    Step,
    event,
    playing,
    saying,
    service,
    tokenizer,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
HI_IDS = [1, 733, 16289, 28793, 12014, 733, 28748, 16289, 28793]
RAW: dict[str, Any] = {"model": MODEL, "prompt": "One two"}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> TestClient:
    return TestClient(create_app(service(backend)))


def post(client: TestClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(url, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: TestClient, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All chunks of a stream, which must end with [DONE]."""
    response = client.post(url, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, empty = response.text.split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        for choice in choices
        if choice["index"] == index
    )


def test_chat_answer_has_openais_shape(client: TestClient, backend: FakeBackend) -> None:
    answer = post(client, CHAT, HI)

    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert backend.requests[0].prompt_ids == tuple(HI_IDS)
    assert backend.num_open == 0


def test_text_answer_has_openais_shape(client: TestClient, backend: FakeBackend) -> None:
    answer = post(client, TEXT, RAW)

    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": " Hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert backend.requests[0].prompt_ids == (1, 2387, 989)


def test_chat_stream_gives_role_then_text_then_reason(client: TestClient) -> None:
    chunks = stream(client, CHAT, HI)

    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_text_stream_adds_up_to_the_answer(client: TestClient) -> None:
    chunks = stream(client, TEXT, RAW)

    assert [chunk["choices"][0]["text"] for chunk in chunks] == [" Hello", " world", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("url", "body"), [(CHAT, HI), (TEXT, RAW)])
def test_usage_is_the_last_chunk_if_asked_for(
    client: TestClient, url: str, body: dict[str, Any]
) -> None:
    *chunks, last = stream(client, url, {**body, "stream_options": {"include_usage": True}})

    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


def test_a_character_over_several_tokens_is_streamed_whole(backend: FakeBackend) -> None:
    backend.script = saying("na\u00efve \U0001f99c!")

    chunks = stream(TestClient(create_app(service(backend))), CHAT, HI)

    assert text_of(chunks) == "na\u00efve \U0001f99c!"
    assert "\ufffd" not in text_of(chunks)


@pytest.mark.parametrize("stop", ["\n\nUser", ["never", "\n\nUser"]])
def test_nothing_of_a_stop_string_over_several_tokens_is_shown(
    backend: FakeBackend, stop: str | list[str]
) -> None:
    backend.script = saying("Yes.\n\nUser: more")
    client = TestClient(create_app(service(backend)))

    answer = post(client, CHAT, {**HI, "stop": stop})
    chunks = stream(client, CHAT, {**HI, "stop": stop})

    assert answer["choices"][0]["message"]["content"] == "Yes."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert text_of(chunks) == "Yes."
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(backend.cancelled) == 2
    assert backend.num_open == 0


def test_a_stop_string_inside_a_batch_drops_the_tokens_after_it(backend: FakeBackend) -> None:
    ids = tokenizer().encode("a b c", bos=False)
    backend.script = playing([event(token_id) for token_id in ids])
    client = TestClient(create_app(service(backend)))

    answer = post(client, CHAT, {**HI, "stop": "b", "return_token_ids": True})

    assert answer["choices"][0]["message"]["content"] == "a "
    assert answer["choices"][0]["token_ids"] == ids[:2]
    assert answer["usage"]["completion_tokens"] == 2


def test_half_a_stop_string_at_the_end_is_shown(backend: FakeBackend) -> None:
    backend.script = saying("Yes.\n")
    client = TestClient(create_app(service(backend)))

    assert text_of(stream(client, CHAT, {**HI, "stop": "\n\n"})) == "Yes.\n"


def test_max_tokens_ends_with_length(client: TestClient) -> None:
    answer = post(client, CHAT, {**HI, "max_tokens": 1})

    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({}, 256 - 9),
        ({"max_tokens": None}, 256 - 9),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 247}, 247),
    ],
)
def test_max_tokens_of_a_chat(
    client: TestClient, backend: FakeBackend, body: dict[str, Any], want: int
) -> None:
    post(client, CHAT, {**HI, **body})

    assert backend.requests[0].params.max_tokens == want


def test_a_text_has_16_tokens_by_default_or_what_fits(backend: FakeBackend) -> None:
    for context_tokens in (256, 10):
        post(TestClient(create_app(service(backend, context_tokens))), TEXT, RAW)

    assert [request.params.max_tokens for request in backend.requests] == [16, 7]


def test_defaults_are_openais(client: TestClient, backend: FakeBackend) -> None:
    post(client, CHAT, HI)
    params = backend.requests[0].params

    assert (params.temperature, params.top_p) == (1.0, 1.0)
    assert params.stop_token_ids == (2,)
    assert params.num_logprobs is None


def test_sampling_fields_reach_the_engine(client: TestClient, backend: FakeBackend) -> None:
    post(client, CHAT, {**HI, "temperature": 0, "top_p": 0.5, "seed": 7, "ignore_eos": True})
    params = backend.requests[0].params

    assert (params.temperature, params.top_p, params.seed) == (0.0, 0.5, 7)
    assert params.stop_token_ids == ()


SAMPLING: dict[str, tuple[dict[str, Any], object]] = {
    "top_k": ({"top_k": 5}, 5),
    "top_k off": ({"top_k": 0}, 0),
    "top_k off as in vLLM": ({"top_k": -1}, 0),
    "top_k of more than there are": ({"top_k": 10**30}, 10**30),
    "min_p": ({"min_p": 0.1}, 0.1),
    "min_p whole": ({"min_p": 1}, 1.0),
    "presence_penalty": ({"presence_penalty": -2}, -2.0),
    "frequency_penalty": ({"frequency_penalty": 1.5}, 1.5),
    "repetition_penalty": ({"repetition_penalty": 1.1}, 1.1),
    "logit_bias": (
        {"logit_bias": {"31999": -100, "0": 0.5}},
        ((31_999, -100.0), (0, 0.5)),
    ),
    "logit_bias empty": ({"logit_bias": {}}, ()),
    "logit_bias of 300": (
        {"logit_bias": {str(token_id): 1 for token_id in range(300)}},
        tuple((token_id, 1.0) for token_id in range(300)),
    ),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("url", "body"), [(CHAT, HI), (TEXT, RAW)], ids=["chat", "text"])
@pytest.mark.parametrize(("fields", "expected"), SAMPLING.values(), ids=SAMPLING.keys())
def test_each_sampling_field_reaches_the_engine(
    client: TestClient,
    backend: FakeBackend,
    url: str,
    body: dict[str, Any],
    fields: dict[str, Any],
    expected: object,
    is_streamed: bool,
) -> None:
    (stream if is_streamed else post)(client, url, {**body, **fields})

    [name] = fields
    assert getattr(backend.requests[0].params, name) == expected


def test_without_sampling_fields_only_temperature_and_seed_are_set(
    client: TestClient, backend: FakeBackend
) -> None:
    post(client, TEXT, {**RAW, "seed": 3})

    assert backend.requests[0].params == SamplingParams(
        temperature=1.0, seed=3, stop_token_ids=(EOS_ID,)
    )


@pytest.mark.parametrize(("url", "body"), [(CHAT, HI), (TEXT, RAW)], ids=["chat", "text"])
def test_priority_and_salt_go_with_every_choice(
    client: TestClient, backend: FakeBackend, url: str, body: dict[str, Any]
) -> None:
    post(client, url, {**body, "n": 2, "priority": -1_000, "cache_salt": "s" * 128})
    stream(client, url, {**body, "priority": 1_000, "cache_salt": None})

    told = [(request.priority, request.cache_salt) for request in backend.requests]
    assert told == [(-1_000, "s" * 128)] * 2 + [(1_000, "")]


def test_random_seed_is_mistrals_seed(client: TestClient, backend: FakeBackend) -> None:
    post(client, CHAT, {**HI, "random_seed": 7})

    assert backend.requests[0].params.seed == 7


def test_without_a_seed_every_request_draws_anew(client: TestClient, backend: FakeBackend) -> None:
    post(client, CHAT, HI)
    post(client, CHAT, HI)

    first, second = (request.params.seed for request in backend.requests)
    assert first != second


def test_choices_come_in_order_with_seeds_that_follow(backend: FakeBackend) -> None:
    def by_seed(request: GenerateRequest) -> list[Step]:
        steps: list[Step] = [()] * (20 - request.params.seed)
        return [*steps, *saying(f"seed {request.params.seed}")(request)]

    backend.script = by_seed
    client = TestClient(create_app(service(backend)))

    answer = post(client, CHAT, {**HI, "n": 3, "seed": 10})
    chunks = stream(client, CHAT, {**HI, "n": 3, "seed": 10})

    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["seed 10", "seed 11", "seed 12"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [text_of(chunks, index) for index in range(3)] == texts
    assert answer["usage"]["prompt_tokens"] == 9
    assert len({request.request_id for request in backend.requests}) == 6


def test_the_last_seed_is_followed_by_the_first(client: TestClient, backend: FakeBackend) -> None:
    post(client, CHAT, {**HI, "n": 2, "seed": MAX_SEED})

    assert [request.params.seed for request in backend.requests] == [MAX_SEED, 0]


def test_greedy_choices_are_equal(client: TestClient) -> None:
    first, second = post(client, CHAT, {**HI, "n": 2, "temperature": 0})["choices"]

    assert first["message"] == second["message"]


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("a", [(1, 264)]),
        ("", [(1,)]),
        (["a", "b"], [(1, 264), (1, 287)]),
        ([1, 5], [(1, 5)]),
        ([2, 1, 2], [(2, 1, 2)]),
        ([[1, 5], [6]], [(1, 5), (6,)]),
        (["a", [31_999]], [(1, 264), (31_999,)]),
    ],
)
def test_prompts_of_every_kind(
    client: TestClient, backend: FakeBackend, prompt: object, want: list[tuple[int, ...]]
) -> None:
    answer = post(client, TEXT, {"model": MODEL, "prompt": prompt})

    assert [request.prompt_ids for request in backend.requests] == want
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(want)))
    assert answer["usage"]["prompt_tokens"] == sum(len(ids) for ids in want)


def test_several_prompts_have_n_choices_each(client: TestClient, backend: FakeBackend) -> None:
    post(client, TEXT, {"model": MODEL, "prompt": ["a", "b"], "n": 2})

    prompts = [request.prompt_ids for request in backend.requests]
    assert prompts == [(1, 264), (1, 264), (1, 287), (1, 287)]


def test_text_after_an_empty_prompt_has_no_first_space(client: TestClient) -> None:
    answer = post(client, TEXT, {"model": MODEL, "prompt": ""})

    assert answer["choices"][0]["text"] == "Hello world"


def test_text_parts_are_joined_by_a_blank_line(client: TestClient, backend: FakeBackend) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    post(client, CHAT, {"model": MODEL, "messages": [{"role": "user", "content": parts}]})

    want = tokenizer().encode("[INST] a\n\nb [/INST]", bos=True)
    assert backend.requests[0].prompt_ids == tuple(want)


def test_an_answer_can_be_sent_back_as_it_came(client: TestClient, backend: FakeBackend) -> None:
    answer = post(client, CHAT, HI)["choices"][0]["message"]
    extra = {"tool_calls": None, "audio": None, "annotations": None, "function_call": None}
    again = [*HI["messages"], {**answer, **extra}, {"role": "user", "content": "more"}]

    post(client, CHAT, {"model": MODEL, "messages": again})

    assert 2 in backend.requests[1].prompt_ids


def test_fields_that_ask_for_nothing_are_accepted(client: TestClient) -> None:
    harmless = {
        "user": "u" * 1_000_000,
        "metadata": {"a": "b"},
        "tools": None,
        "response_format": {"type": "text"},
        "presence_penalty": 0.0,
        "safe_prompt": False,
        "prefix": None,
    }

    post(client, CHAT, {**HI, **harmless})
    post(client, TEXT, {**RAW, "echo": False, "best_of": 1, "suffix": ""})


def test_chat_logprobs_run_in_step_with_the_tokens(client: TestClient) -> None:
    body = {**HI, "logprobs": True, "top_logprobs": 2}
    answer = post(client, CHAT, body)["choices"][0]["logprobs"]["content"]
    chunks = stream(client, CHAT, body)
    streamed = [item for chunk in chunks[1:] for item in chunk["choices"][0]["logprobs"]["content"]]

    assert answer[0] == {
        "token": " Hello",
        "logprob": -1.0,
        "bytes": list(b" Hello"),
        "top_logprobs": [
            {"token": " Hello", "logprob": -1.0, "bytes": list(b" Hello")},
            {"token": " \u2047 ", "logprob": -9999.0, "bytes": list(" \u2047 ".encode())},
        ],
    }
    assert [item["token"] for item in answer] == [" Hello", " world", "</s>"]
    assert answer[2]["bytes"] is None
    assert streamed == answer


def test_chat_logprobs_without_alternatives(client: TestClient, backend: FakeBackend) -> None:
    answer = post(client, CHAT, {**HI, "logprobs": True})["choices"][0]["logprobs"]["content"]

    assert backend.requests[0].params.num_logprobs == 0
    assert [item["top_logprobs"] for item in answer] == [[], [], []]


@pytest.mark.parametrize("num_logprobs", [0, 1])
def test_text_logprobs_run_in_step_with_the_tokens(client: TestClient, num_logprobs: int) -> None:
    answer = post(client, TEXT, {**RAW, "logprobs": num_logprobs})["choices"][0]["logprobs"]

    assert answer == {
        "tokens": [" Hello", " world", "</s>"],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "top_logprobs": [{" Hello": -1.0}, {" world": -1.0}, {"</s>": -1.0}],
        "text_offset": [0, 6, 12],
    }


def test_streamed_text_offsets_go_on_from_chunk_to_chunk(client: TestClient) -> None:
    chunks = stream(client, TEXT, {**RAW, "logprobs": 0})

    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert offsets == [[0], [6], [12]]


def test_bytes_of_half_a_character_have_names_of_their_own(backend: FakeBackend) -> None:
    backend.script = saying("\U0001f99c")
    client = TestClient(create_app(service(backend)))

    tokens = post(client, TEXT, {**RAW, "logprobs": 0})["choices"][0]["logprobs"]["tokens"]

    assert tokens == [" ", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\xa6", "bytes:\\x9c", "</s>"]


def test_token_ids_of_a_chat(client: TestClient) -> None:
    answer = post(client, CHAT, {**HI, "return_token_ids": True})
    first, *chunks = stream(client, CHAT, {**HI, "return_token_ids": True})

    assert answer["prompt_token_ids"] == HI_IDS
    assert answer["choices"][0]["token_ids"] == [22557, 1526, 2]
    assert first["prompt_token_ids"] == HI_IDS
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[22557], [1526], [2]]
    assert all("prompt_token_ids" not in chunk for chunk in chunks)


def test_token_ids_of_a_text(client: TestClient) -> None:
    answer = post(client, TEXT, {**RAW, "return_token_ids": True})["choices"][0]
    first, *chunks = stream(client, TEXT, {**RAW, "return_token_ids": True})

    assert answer["prompt_token_ids"] == [1, 2387, 989]
    assert answer["token_ids"] == [22557, 1526, 2]
    assert first["choices"][0]["prompt_token_ids"] == [1, 2387, 989]
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in chunks)


def test_token_ids_are_streamed_even_while_their_text_is_held_back(backend: FakeBackend) -> None:
    backend.script = saying("\U0001f99c")
    client = TestClient(create_app(service(backend)))

    _, *chunks = stream(client, CHAT, {**HI, "return_token_ids": True})

    ids = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
    assert ids == [28705, 243, 162, 169, 159, 2]


def test_a_long_prompt_is_encoded_beside_the_event_loop(backend: FakeBackend) -> None:
    client = TestClient(create_app(service(backend, context_tokens=32_768)))

    post(client, TEXT, {"model": MODEL, "prompt": "hello " * 10_000})

    assert len(backend.requests[0].prompt_ids) == 20_002


def test_a_small_kv_cache_bounds_the_default(backend: FakeBackend) -> None:
    small = replace(service(backend), cache_tokens=100)

    post(TestClient(create_app(small)), CHAT, HI)

    assert backend.requests[0].max_total_tokens == 100


def test_health_says_that_the_process_lives(client: TestClient, backend: FakeBackend) -> None:
    backend.not_ready = NotReady("expert 3 of layer 1 is on no host")

    assert client.get("/health").status_code == 200


def test_ready_says_why_not(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/ready").status_code == 200

    backend.not_ready = NotReady("expert 3 of layer 1 is on no host")
    response = client.get("/ready")

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["message"] == "expert 3 of layer 1 is on no host"


def test_models_are_listed_and_found(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]

    assert card["id"] == MODEL
    assert card["created"] == 1_700_000_000
    assert card["max_context_length"] == 256
    assert client.get(f"/v1/models/{MODEL}").json() == card


def test_a_well_formed_request_id_is_sent_back_but_never_used(
    client: TestClient, backend: FakeBackend
) -> None:
    response = client.post(CHAT, json=HI, headers={"x-request-id": "job-7"})

    assert response.headers["x-request-id"] == "job-7"
    assert "job-7" not in backend.requests[0].request_id
    assert "job-7" not in response.json()["id"]


@pytest.mark.parametrize("label", ["", "a b", "a" * 129, "a\tb", "\u00e9"])
def test_an_ill_formed_request_id_is_replaced(client: TestClient, label: str) -> None:
    headers = {"x-request-id": label.encode("latin-1")}
    response = client.get("/health", headers=headers)  # type: ignore[arg-type]

    assert len(response.headers["x-request-id"]) == 32


def test_openapi_describes_the_bodies(client: TestClient) -> None:
    description = client.get("/openapi.json").json()

    body = description["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert "messages" in description["components"]["schemas"]["ChatRequest"]["properties"]
