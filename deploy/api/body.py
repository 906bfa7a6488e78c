"""The body of an HTTP request to one of the schemas: read within a limit, parsed, checked."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from deploy.api.errors import BodyTooLarge, InvalidRequest, UnsupportedBody
from deploy.api.fields import IDS_TAG, KEY_STEP, TEXT_TAG
from deploy.api.schemas import IGNORED_FIELDS, UNSUPPORTED_FIELDS, StrictModel

MAX_BODY_BYTES = 8 * 2**20

# pydantic's names of problems, as OpenAI calls them.
CODES: Mapping[str, str] = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "greater_than": "integer_below_min_value",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
    "array_above_max_length": "array_above_max_length",
    "unsupported_content_type": "unsupported_content_type",
    "unsupported_parameter": "unsupported_parameter",
}

RequestT = TypeVar("RequestT", bound=StrictModel)


async def read_request(request: Request, schema: type[RequestT]) -> RequestT:
    """Read and check the body of a request.

    Raises:
        BodyTooLarge: it is longer than `MAX_BODY_BYTES`; the rest was not read.
        UnsupportedBody: it is not said to be JSON, or is compressed.
        InvalidRequest: it is not JSON, or a field of it is wrong; names the field.
    """
    _check_headers(request.headers)
    return check_request(parse_json(await _read_body(request)), schema)


def check_request(data: object, schema: type[RequestT]) -> RequestT:
    """Check parsed JSON, or a dictionary that stands for it, against a schema.

    Raises:
        InvalidRequest: a field of it is wrong; names the field.
    """
    if not isinstance(data, dict):
        raise InvalidRequest("body: want a JSON object", None, "invalid_type")
    try:
        return schema.model_validate(_supported(data))
    except ValidationError as exc:
        raise _invalid(exc) from exc


def parse_json(body: bytes) -> object:
    """Parse JSON as the standard has it: UTF-8, no NaN, no infinity, no key twice.

    Raises:
        InvalidRequest: it is no such text.
    """
    try:
        text = body.decode()
        data: object = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("body: not valid JSON", None, "invalid_json") from exc
    if "\\u" in text:
        _check_surrogates(data)
    return data


def _check_headers(headers: Mapping[str, str]) -> None:
    # A web page can send any other type to a server on the visitor's machine without asking.
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedBody("content-type: want application/json", None, "unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedBody(
            "content-encoding: compressed bodies are not read", None, "unsupported_encoding"
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"body: want at most {MAX_BODY_BYTES} bytes", None, "request_too_large")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise InvalidRequest("body: an object has the same key twice", None, "duplicate_key")
    return data


def _refuse_constant(name: str) -> float:
    raise InvalidRequest(f"body: {name} is not a number", None, "invalid_value")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise InvalidRequest("body: a number is too large", None, "invalid_value")
    return value


def _check_surrogates(data: object) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            "body: half a surrogate pair in a text", None, "invalid_unicode"
        ) from exc


def _supported(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out nulls and fields without effect; refuse what is asked for in vain."""
    for name, neutral in UNSUPPORTED_FIELDS.items():
        value = data.get(name)
        if value is not None and not any(_is_same(value, want) for want in neutral):
            raise InvalidRequest(f"{name}: not supported", name, "unsupported_parameter")
    return {
        name: value
        for name, value in data.items()
        if value is not None and name not in IGNORED_FIELDS and name not in UNSUPPORTED_FIELDS
    }


def _is_same(value: object, want: object) -> bool:
    return value == want and isinstance(value, bool) == isinstance(want, bool)


def _invalid(error: ValidationError) -> InvalidRequest:
    """Report the first problem; the input itself is never echoed."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _path(problem["loc"])
    other = "invalid_type" if problem["type"].endswith("_type") else "invalid_value"
    code = CODES.get(problem["type"], other)
    return InvalidRequest(f"{param[:100]}: {problem['msg']}", param, code)


def _path(loc: tuple[int | str, ...]) -> str:
    """Write a place in the body as `messages[0].role`."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not path:
            path = step
        elif step not in (TEXT_TAG, IDS_TAG, KEY_STEP):
            path += f".{step}"
    return path
