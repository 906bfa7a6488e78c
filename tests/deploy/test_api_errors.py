import inspect
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster import errors as cluster_errors
from cluster.errors import EngineBusy, EngineStopped, NotReady, RequestFailed, RequestTooLarge
from deploy.api import errors as api_errors
from deploy.api.body import MAX_BODY_BYTES, parse_json
from deploy.api.errors import ERROR_TABLE, InvalidRequest
from deploy.api.routes import create_app
from model import errors as model_errors
from model.errors import PromptError, SamplingError
from routing import errors as routing_errors
from routing.errors import ExpertUnavailable, LinkClosed
from tests.deploy.fakes import MODEL, FakeBackend, event, playing, saying, service

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
RAW: dict[str, Any] = {"model": MODEL, "prompt": "One two"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    """After each test the next good request must be served as ever, and nothing be left over."""
    client = TestClient(create_app(service(backend)))
    yield client
    backend.script = saying("Hello world")
    answer = client.post(CHAT, json=HI).json()
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert backend.num_open == 0


def check_refused(
    client: TestClient, url: str, content: bytes, want: tuple[int, str | None, str]
) -> None:
    response = client.post(url, content=content, headers=JSON)
    error = response.json()["error"]

    assert (response.status_code, error["param"], error["code"]) == want
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300
    assert "Traceback" not in error["message"]


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def turns(*roles: str) -> list[dict[str, object]]:
    return [{"role": role, "content": "a"} for role in roles]


NOT_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "invalid_json"),
    "comma": (b"{,}", "invalid_json"),
    "truncated": (b'{"model": "mix', "invalid_json"),
    "list": (b"[]", "invalid_type"),
    "text": (b'"x"', "invalid_type"),
    "null": (b"null", "invalid_type"),
    "number": (b"1", "invalid_type"),
    "deep": (b"[" * 100_000, "invalid_json"),
    "deep and closed": (b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
    "byte order mark": (b"\xef\xbb\xbf{}", "invalid_json"),
    "utf-16": ("{}".encode("utf-16"), "invalid_json"),
    "not utf-8": (b'{"model": "\xff"}', "invalid_json"),
    "key twice": (b'{"n": 1, "n": 9999999}', "duplicate_key"),
    "NaN": (b'{"temperature": NaN}', "invalid_value"),
    "Infinity": (b'{"temperature": -Infinity}', "invalid_value"),
    "1e999": (b'{"temperature": 1e999}', "invalid_value"),
    "5000 digits": (b'{"n": ' + b"9" * 5_000 + b"}", "invalid_json"),
    "half a surrogate pair": (b'{"model": "\\ud800"}', "invalid_unicode"),
    "half a surrogate pair as a key": (b'{"\\ud800": 1}', "invalid_unicode"),
}


@pytest.mark.parametrize(("body", "code"), NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes, code: str) -> None:
    check_refused(client, CHAT, body, (400, None, code))


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83e\\udd9c"') == "\U0001f99c"


CHAT_CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "model null": ({"model": None}, "model", "missing_required_parameter"),
    "model a number": ({"model": 5}, "model", "invalid_type"),
    "messages null": ({"messages": None}, "messages", "missing_required_parameter"),
    "messages empty": ({"messages": []}, "messages", "empty_array"),
    "messages a text": ({"messages": "hi"}, "messages", "invalid_type"),
    "too many messages": (
        {"messages": turns("user") * 100_001},
        "messages",
        "array_above_max_length",
    ),
    "message a text": ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    "message null": ({"messages": [None]}, "messages[0]", "invalid_type"),
    "message empty": ({"messages": [{}]}, "messages[0].role", "missing_required_parameter"),
    "message with a field more": (
        {"messages": [{"role": "user", "content": "a", "foo": 1}]},
        "messages[0].foo",
        "unknown_parameter",
    ),
    "role unknown": ({"messages": turns("root")}, "messages[0].role", "invalid_value"),
    "role empty": ({"messages": turns("")}, "messages[0].role", "invalid_value"),
    "role a number": (
        {"messages": [{"role": 1, "content": "a"}]},
        "messages[0].role",
        "invalid_type",
    ),
    "two user turns": (
        {"messages": turns("user", "user")},
        "messages[1].role",
        "invalid_message_order",
    ),
    "assistant first": (
        {"messages": turns("assistant", "user")},
        "messages[0].role",
        "invalid_message_order",
    ),
    "assistant last": (
        {"messages": turns("user", "assistant")},
        "messages[1].role",
        "invalid_message_order",
    ),
    "content null": ({"messages": user(None)}, "messages[0].content", "invalid_type"),
    "content a number": ({"messages": user(1)}, "messages[0].content", "invalid_type"),
    "content an image": (
        {"messages": user([{"type": "image_url", "image_url": {"url": "http://localhost"}}])},
        "messages[0].content",
        "unsupported_content_type",
    ),
    "content a part without text": (
        {"messages": user([{"type": "text"}])},
        "messages[0].content",
        "invalid_type",
    ),
    "content of too many parts": (
        {"messages": user([{"type": "text", "text": ""}] * 100_000)},
        "messages[0].content",
        "array_above_max_length",
    ),
    "content over the context": (
        {"messages": user("a b " * 200)},
        "messages",
        "context_length_exceeded",
    ),
    "content far over the context": (
        {"messages": user("a" * 8_000_000)},
        "messages",
        "context_length_exceeded",
    ),
    "tool calls": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
        "invalid_value",
    ),
    "prefix": (
        {"messages": [{"role": "assistant", "content": "a", "prefix": True}]},
        "messages[0].prefix",
        "unsupported_parameter",
    ),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    "max_tokens 2^31": ({"max_tokens": 2**31}, "max_tokens", "integer_above_max_value"),
    "max_tokens 10^30": ({"max_tokens": 10**30}, "max_tokens", "integer_above_max_value"),
    "max_tokens a text": ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    "max_tokens 1.5": ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    "max_tokens 1.0": ({"max_tokens": 1.0}, "max_tokens", "invalid_type"),
    "max_tokens true": ({"max_tokens": True}, "max_tokens", "invalid_type"),
    "max_tokens over the context": ({"max_tokens": 248}, "messages", "context_length_exceeded"),
    "two different limits": (
        {"max_tokens": 1, "max_completion_tokens": 2},
        "max_completion_tokens",
        "invalid_value",
    ),
    "min_tokens": ({"min_tokens": 1}, "min_tokens", "unsupported_parameter"),
    "n 0": ({"n": 0}, "n", "integer_below_min_value"),
    "n 9": ({"n": 9}, "n", "integer_above_max_value"),
    "n 10^18": ({"n": 10**18}, "n", "integer_above_max_value"),
    "temperature below": ({"temperature": -0.1}, "temperature", "integer_below_min_value"),
    "temperature above": ({"temperature": 2.1}, "temperature", "integer_above_max_value"),
    "temperature 1e308": ({"temperature": 1e308}, "temperature", "integer_above_max_value"),
    "temperature a text": ({"temperature": "hot"}, "temperature", "invalid_type"),
    "temperature true": ({"temperature": True}, "temperature", "invalid_type"),
    "top_p 0": ({"top_p": 0}, "top_p", "integer_below_min_value"),
    "top_p above": ({"top_p": 1.01}, "top_p", "integer_above_max_value"),
    "top_k -2": ({"top_k": -2}, "top_k", "integer_below_min_value"),
    "top_k 1.5": ({"top_k": 1.5}, "top_k", "invalid_type"),
    "top_k true": ({"top_k": True}, "top_k", "invalid_type"),
    "min_p above": ({"min_p": 1.5}, "min_p", "integer_above_max_value"),
    "min_p below": ({"min_p": -0.1}, "min_p", "integer_below_min_value"),
    "presence_penalty": ({"presence_penalty": 2.1}, "presence_penalty", "integer_above_max_value"),
    "frequency_penalty": (
        {"frequency_penalty": -2.1},
        "frequency_penalty",
        "integer_below_min_value",
    ),
    "a penalty of false": ({"frequency_penalty": False}, "frequency_penalty", "invalid_type"),
    "repetition_penalty 0": (
        {"repetition_penalty": 0},
        "repetition_penalty",
        "integer_below_min_value",
    ),
    "repetition_penalty 1e308": (
        {"repetition_penalty": 1e308},
        "repetition_penalty",
        "integer_above_max_value",
    ),
    "logit_bias a list": ({"logit_bias": [[5, 1]]}, "logit_bias", "invalid_type"),
    "logit_bias beyond the vocabulary": (
        {"logit_bias": {"5": 1, "32000": 1}},
        "logit_bias",
        "invalid_value",
    ),
    "logit_bias of a word": ({"logit_bias": {"Paris": 1}}, "logit_bias.Paris", "invalid_value"),
    "logit_bias of a negative id": ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "invalid_value"),
    "logit_bias of an id with zeros": (
        {"logit_bias": {"5": 1, "05": 1}},
        "logit_bias.05",
        "invalid_value",
    ),
    "logit_bias of a huge id": (
        {"logit_bias": {"9" * 5_000: 1}},
        "logit_bias." + "9" * 89,
        "invalid_value",
    ),
    "logit_bias above": (
        {"logit_bias": {"5": 101}},
        "logit_bias.5",
        "integer_above_max_value",
    ),
    "logit_bias a text": ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
    "logit_bias null": ({"logit_bias": {"5": None}}, "logit_bias.5", "invalid_type"),
    "logit_bias of too many": (
        {"logit_bias": {str(token_id): 1 for token_id in range(301)}},
        "logit_bias",
        "array_above_max_length",
    ),
    "priority above": ({"priority": 1_001}, "priority", "integer_above_max_value"),
    "priority below": ({"priority": -1_001}, "priority", "integer_below_min_value"),
    "priority 0.5": ({"priority": 0.5}, "priority", "invalid_type"),
    "cache_salt empty": ({"cache_salt": ""}, "cache_salt", "empty_string"),
    "cache_salt too long": ({"cache_salt": "a" * 129}, "cache_salt", "string_above_max_length"),
    "cache_salt a number": ({"cache_salt": 5}, "cache_salt", "invalid_type"),
    "top_logprobs 21": (
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "integer_above_max_value",
    ),
    "top_logprobs -1": (
        {"logprobs": True, "top_logprobs": -1},
        "top_logprobs",
        "integer_below_min_value",
    ),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    "logprobs a number": ({"logprobs": 1}, "logprobs", "invalid_type"),
    "stop empty": ({"stop": ""}, "stop[0]", "empty_string"),
    "stop with an empty text": ({"stop": ["a", ""]}, "stop[1]", "empty_string"),
    "stop with null": ({"stop": [None]}, "stop[0]", "invalid_type"),
    "stop a number": ({"stop": 5}, "stop", "invalid_type"),
    "too many stops": ({"stop": ["a"] * 17}, "stop", "array_above_max_length"),
    "stop too long": ({"stop": "a" * 1_000_000}, "stop[0]", "string_above_max_length"),
    "seed 2^63": ({"seed": 2**63}, "seed", "integer_above_max_value"),
    "seed -1": ({"seed": -1}, "seed", "integer_below_min_value"),
    "seed 1.5": ({"seed": 1.5}, "seed", "invalid_type"),
    "seed a text": ({"seed": "x"}, "seed", "invalid_type"),
    "two different seeds": ({"seed": 1, "random_seed": 2}, "random_seed", "invalid_value"),
    "stream a text": ({"stream": "yes"}, "stream", "invalid_type"),
    "stream a number": ({"stream": 1}, "stream", "invalid_type"),
    "stream_options without stream": ({"stream_options": {}}, "stream_options", "invalid_value"),
    "stream_options with a field more": (
        {"stream": True, "stream_options": {"foo": 1}},
        "stream_options.foo",
        "unknown_parameter",
    ),
    "response_format": (
        {"response_format": {"type": "json_object"}},
        "response_format",
        "unsupported_parameter",
    ),
    "structured_outputs": (
        {"structured_outputs": {"regex": "(a+)+b"}},
        "structured_outputs",
        "unsupported_parameter",
    ),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    "tool_choice": ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
    "safe_prompt": ({"safe_prompt": True}, "safe_prompt", "unsupported_parameter"),
    "chat_template": ({"chat_template": "{{ 1 }}"}, "chat_template", "unknown_parameter"),
    "model_path": ({"model_path": "/etc/passwd"}, "model_path", "unknown_parameter"),
    "trust_remote_code": ({"trust_remote_code": True}, "trust_remote_code", "unknown_parameter"),
    "unknown": ({"foo": 1}, "foo", "unknown_parameter"),
    "unknown with a long name": ({"f" * 10_000: 1}, "f" * 100, "unknown_parameter"),
    "unknown with brackets": ({"<text>": 1}, "<text>", "unknown_parameter"),
}


@pytest.mark.parametrize(("fields", "param", "code"), CHAT_CASES.values(), ids=CHAT_CASES.keys())
def test_a_wrong_field_of_a_chat_is_named(
    client: TestClient, backend: FakeBackend, fields: dict[str, Any], param: str, code: str
) -> None:
    check_refused(client, CHAT, json.dumps({**HI, **fields}).encode(), (400, param, code))
    assert backend.requests == []


TEXT_CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt null": ({"prompt": None}, "prompt", "missing_required_parameter"),
    "prompt an empty list": ({"prompt": []}, "prompt", "empty_array"),
    "prompt an empty list of ids": ({"prompt": [[]]}, "prompt[0]", "empty_array"),
    "prompt a number": ({"prompt": 1}, "prompt", "invalid_type"),
    "prompt an object": ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
    "id below 0": ({"prompt": [-1]}, "prompt[0][0]", "integer_below_min_value"),
    "id beyond the vocabulary": ({"prompt": [32_000]}, "prompt", "invalid_value"),
    "id 2^100": ({"prompt": [2**100]}, "prompt", "invalid_value"),
    "id 1.5": ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    "id true": ({"prompt": [True]}, "prompt[0]", "invalid_type"),
    "id true in a list": ({"prompt": [[1, True]]}, "prompt[0][1]", "invalid_type"),
    "ids and texts in one list": ({"prompt": [1, "a"]}, "prompt[0]", "invalid_type"),
    "too many prompts": ({"prompt": ["a"] * 10_001}, "prompt", "array_above_max_length"),
    "too many choices in all": (
        {"prompt": ["a"] * 65, "n": 2},
        "n",
        "integer_above_max_value",
    ),
    "prompt over the context": ({"prompt": [5] * 256}, "prompt", "context_length_exceeded"),
    "prompt far over the context": (
        {"prompt": "a" * 8_000_000},
        "prompt",
        "context_length_exceeded",
    ),
    "prompt_embeds": ({"prompt_embeds": "AAAA"}, "prompt_embeds", "unknown_parameter"),
    "best_of": ({"best_of": 10**6}, "best_of", "unsupported_parameter"),
    "echo": ({"echo": True}, "echo", "unsupported_parameter"),
    "suffix": ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    "min_p": ({"min_p": 2}, "min_p", "integer_above_max_value"),
    "logit_bias": ({"logit_bias": {"32000": 1}}, "logit_bias", "invalid_value"),
    "priority": ({"priority": "high"}, "priority", "invalid_type"),
    "logprobs 6": ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
    "logprobs true": ({"logprobs": True}, "logprobs", "invalid_type"),
}


@pytest.mark.parametrize(("fields", "param", "code"), TEXT_CASES.values(), ids=TEXT_CASES.keys())
def test_a_wrong_field_of_a_text_is_named(
    client: TestClient, backend: FakeBackend, fields: dict[str, Any], param: str, code: str
) -> None:
    check_refused(client, TEXT, json.dumps({**RAW, **fields}).encode(), (400, param, code))
    assert backend.requests == []


@pytest.mark.parametrize("model", ["nope", "", "../../etc/passwd", "m" * 1_000_000])
def test_another_model_is_not_found(client: TestClient, model: str) -> None:
    body = json.dumps({**HI, "model": model}).encode()

    check_refused(client, CHAT, body, (404, "model", "model_not_found"))


def test_a_prompt_too_long_is_told_both_numbers(client: TestClient) -> None:
    message = client.post(TEXT, json={**RAW, "prompt": [5] * 300}).json()["error"]["message"]

    assert message == "prompt: 300 tokens and 1 to generate, but the context has 256"


def test_a_body_over_the_limit_is_not_read(client: TestClient) -> None:
    check_refused(client, CHAT, b" " * (MAX_BODY_BYTES + 1), (413, None, "request_too_large"))


def test_a_body_without_a_length_is_read_up_to_the_limit(client: TestClient) -> None:
    num_read = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_read
        while num_read < 100:
            num_read += 1
            yield b" " * 2**20

    response = client.post(CHAT, content=endless(), headers=JSON)

    assert response.status_code == 413


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_refused(client: TestClient, media_type: str) -> None:
    response = client.post(
        CHAT, content=json.dumps(HI).encode(), headers={"content-type": media_type}
    )

    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    response = client.post(CHAT, content=b"x", headers={**JSON, "content-encoding": "gzip"})

    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_encoding"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "TRACE", "PATCH"])
def test_another_method_is_not_allowed(client: TestClient, method: str) -> None:
    response = client.request(method, CHAT)

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1/nope", "//v1/models", "/V1/models", "/v1/responses"])
def test_another_path_is_not_found(client: TestClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("model", ["nope", "", "a/b"])
def test_another_models_card_is_not_found(client: TestClient, model: str) -> None:
    response = client.get(f"/v1/models/{model}")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


FAULTS: list[tuple[Exception, int, str, str | None]] = [
    (EngineBusy(9, retry_after_s=2.4), 503, "overloaded", "2"),
    (EngineBusy(9, retry_after_s=0.1), 503, "overloaded", "1"),
    (NotReady("no router"), 503, "not_ready", "1"),
    (EngineStopped("stopped"), 503, "engine_stopped", "1"),
    (ExpertUnavailable("expert 3"), 503, "expert_unavailable", "1"),
    (RequestTooLarge(300, 200), 400, "context_length_exceeded", None),
    (SamplingError("seed", -1, "more"), 400, "invalid_value", None),
    (PromptError("no", "prompt", "invalid_prompt"), 400, "invalid_prompt", None),
    (RequestFailed("layer 3"), 500, "internal_error", None),
    (LinkClosed("10.0.0.7"), 500, "internal_error", None),
    (ZeroDivisionError("secret"), 500, "internal_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code", "retry_after"), FAULTS)
def test_an_error_before_the_first_token_has_a_status(
    client: TestClient,
    backend: FakeBackend,
    error: Exception,
    status: int,
    code: str,
    retry_after: str | None,
    stream: bool,
) -> None:
    backend.script = playing(error)

    response = client.post(CHAT, json={**HI, "stream": stream})

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == retry_after


def test_a_fault_of_ours_is_logged_once_and_not_explained(
    client: TestClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.script = playing(ZeroDivisionError("secret"))

    with caplog.at_level(logging.ERROR):
        response = client.post(CHAT, json=HI)

    request_id = response.headers["x-request-id"]
    assert response.json()["error"]["message"] == f"internal error; request id {request_id}"
    assert [record.getMessage() for record in caplog.records] == [
        f"request_id={request_id} event=request_failed"
    ]
    assert "secret" in caplog.text


def test_a_clients_mistake_is_not_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.post(CHAT, json={**HI, "user": "a\nb", "foo": "a\nb"})

    assert [record for record in caplog.records if record.name.startswith("deploy")] == []


def test_one_failed_choice_cancels_the_others(client: TestClient, backend: FakeBackend) -> None:
    backend.script = lambda request: (
        [EngineBusy(1)] if request.request_id.endswith("-2") else [(event(5),)]
    )

    response = client.post(CHAT, json={**HI, "n": 4})

    assert response.status_code == 503
    assert len(backend.cancelled) == 3


@pytest.mark.parametrize("room", [model_errors, cluster_errors, routing_errors, api_errors])
def test_every_error_has_its_place_in_the_table(room: object) -> None:
    classes = {
        item
        for _, item in inspect.getmembers(room, inspect.isclass)
        if issubclass(item, Exception) and item.__module__ == room.__name__  # type: ignore[attr-defined]
    }

    assert classes
    assert classes - set(ERROR_TABLE) == set()


def test_an_error_of_a_subclass_is_answered_as_its_base() -> None:
    class Special(InvalidRequest):
        pass

    assert api_errors.kind_of(Special("a", "b", "c")).status == 400
