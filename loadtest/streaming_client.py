"""One streamed request, measured with our own clock from outside.

Knows HTTP and server-sent events, nothing of the server. A stream that ends without `[DONE]` has
failed, whatever came before.

StreamFailure
    Unreachable     no connection, or it broke before the status
    Refused         a status other than 200
    BadAnswer       an event that is no chunk of a stream, or no list of models
    ErrorEvent      the server reported an error inside the stream
    BrokenOff       the connection broke, or the stream ended without `[DONE]`
    NoTokens        a whole stream that held no token
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"
MODELS_PATH = "/v1/models"
DONE = b"[DONE]"
CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 120.0
MESSAGE_CHARS = 200

Clock = Callable[[], float]


class StreamFailure(Exception):
    """Root: the request was not answered in full."""


class Unreachable(StreamFailure):
    """No connection, or it broke before the status."""


class Refused(StreamFailure):
    """A status other than 200."""


class BadAnswer(StreamFailure):
    """An event that is no chunk of a stream, or no list of models."""


class ErrorEvent(StreamFailure):
    """The server reported an error inside the stream."""


class BrokenOff(StreamFailure):
    """The connection broke, or the stream ended without `[DONE]`."""


class NoTokens(StreamFailure):
    """A whole stream that held no token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One answered request.

    Attributes:
        ttft_s: from sending to the first event with a token.
        itl_s: one latency for each token after the first event's. An event of n tokens counts n
            times an n-th of the time since the event before, so their sum is the decode time.
        e2e_s: from sending to `[DONE]`.
        num_tokens: by the server's own count where it sends one (`stream_options`), else by
            `token_ids`; a server that sends neither is counted one token per text event.
    """

    ttft_s: float
    itl_s: tuple[float, ...]
    e2e_s: float
    num_tokens: int

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed after the first event; None if nothing came after it."""
        decode_s = sum(self.itl_s)
        return len(self.itl_s) / decode_s if decode_s else None


class StreamingClient:
    """Sends one request at a time over a kept connection; one for each user.

    Args:
        base_url: as in `http://127.0.0.1:8000`.
    """

    def __init__(self, base_url: str, clock: Clock = time.perf_counter) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._session = requests.Session()

    def first_model(self) -> str:
        """Name the first model that the server lists.

        Raises:
            StreamFailure: it does not answer, or names none.
        """
        try:
            response = self._session.get(
                self._base_url + MODELS_PATH, timeout=(CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S)
            )
        except requests.RequestException as error:
            raise Unreachable(f"{self._base_url}: {type(error).__name__}") from error
        _check_status(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (requests.RequestException, LookupError, TypeError) as error:
            raise BadAnswer(f"no list of models: {type(error).__name__}") from error

    def chat(self, body: dict[str, Any]) -> Measurement:
        """Stream the answer to one chat and drop its text.

        Args:
            body: of the request; `stream` and `return_token_ids` are set here.

        Raises:
            StreamFailure: the request was refused or its answer is not whole.
        """
        return self._stream(CHAT_PATH, body)

    def complete(self, body: dict[str, Any]) -> Measurement:
        """Stream the continuation of one text, as `chat` does."""
        return self._stream(TEXT_PATH, body)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _stream(self, path: str, body: dict[str, Any]) -> Measurement:
        arrivals: list[tuple[float, int]] = []
        counted: int | None = None
        done_s: float | None = None
        started_s = self._clock()
        with self._open(path, {**body, "stream": True, "return_token_ids": True}) as response:
            _check_status(response)
            # Read on after [DONE]: a connection that is left before its end cannot be used again.
            for data in _events(response):
                now_s = self._clock()
                if data == DONE:
                    done_s = now_s
                elif done_s is None:
                    num_tokens, usage = _count_tokens(data)
                    counted = usage or counted
                    if num_tokens:
                        arrivals.append((now_s, num_tokens))
        if done_s is None:
            raise BrokenOff("the stream ended without [DONE]")
        return _measure(started_s, arrivals, done_s, counted)

    def _open(self, path: str, body: dict[str, Any]) -> requests.Response:
        try:
            return self._session.post(
                self._base_url + path,
                json=body,
                stream=True,
                timeout=(CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S),
            )
        except requests.RequestException as error:
            raise Unreachable(f"{self._base_url}: {type(error).__name__}") from error


def _check_status(response: requests.Response) -> None:
    if response.status_code == 200:
        return
    try:
        message = response.json()["error"]["message"]
    except (requests.RequestException, ValueError, LookupError, TypeError):
        message = ""
    # Only what is the same for every such refusal, so that Locust counts them as one error.
    raise Refused(f"{response.status_code} {str(message)[:MESSAGE_CHARS]}".rstrip())


def _events(response: requests.Response) -> Iterator[bytes]:
    """Give the data of each event as it arrives.

    Raises:
        BrokenOff: the connection broke.
    """
    try:
        # chunk_size None: a chunk of the transfer encoding at a time, as soon as it is there.
        for line in response.iter_lines(chunk_size=None):
            if line.startswith(b"data:"):
                yield line[5:].strip()
    except requests.RequestException as error:
        raise BrokenOff(f"the connection broke: {type(error).__name__}") from error


def _count_tokens(data: bytes) -> tuple[int, int | None]:
    """Give an event's tokens, and the server's count of all so far if the event has one."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise ErrorEvent(str(event["error"]["message"])[:MESSAGE_CHARS])
        num_tokens = sum(_tokens_of(choice) for choice in event["choices"])
        usage = event.get("usage") or {}
        return num_tokens, usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadAnswer(f"no chunk of a stream: {type(error).__name__}") from error


def _tokens_of(choice: dict[str, Any]) -> int:
    token_ids = choice.get("token_ids")
    if token_ids is not None:
        return len(token_ids)
    text = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return 1 if text else 0


def _measure(
    started_s: float, arrivals: list[tuple[float, int]], done_s: float, counted: int | None
) -> Measurement:
    if not arrivals:
        raise NoTokens("the answer holds no token")
    itl_s: list[float] = []
    for (before_s, _), (now_s, num_tokens) in zip(arrivals, arrivals[1:], strict=False):
        itl_s += [(now_s - before_s) / num_tokens] * num_tokens
    return Measurement(
        ttft_s=arrivals[0][0] - started_s,
        itl_s=tuple(itl_s),
        e2e_s=done_s - started_s,
        num_tokens=counted or sum(num_tokens for _, num_tokens in arrivals),
    )
