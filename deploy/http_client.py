"""The command line's own client of the HTTP API."""

import json
from collections.abc import Iterator
from typing import Any

import requests

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 600


class ApiFailure(Exception):
    """The server refused, failed, or is not there."""


class ApiClient:
    """Streams answers of the one model that is served at `url`.

    Raises:
        ApiFailure: nothing serves there.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.model = self._served_model()

    def chat(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Iterator[str]:
        """Pieces of the answer to a conversation."""
        for choice in self._stream("/v1/chat/completions", {"messages": messages, **options}):
            yield choice["delta"].get("content") or ""

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        """Pieces of the text that follows a prompt."""
        for choice in self._stream("/v1/completions", {"prompt": prompt, **options}):
            yield choice["text"]

    def _served_model(self) -> str:
        try:
            response = requests.get(f"{self._url}/v1/models", timeout=(CONNECT_TIMEOUT_S, 30))
        except requests.RequestException as error:
            raise ApiFailure(f"nothing serves at {self._url}; is `mixray serve` up?") from error
        try:
            return str(_checked(response).json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ApiFailure(f"{self._url} does not serve models") from error

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with requests.post(
                self._url + path,
                json={"model": self.model, "stream": True, **body},
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                stream=True,
            ) as response:
                yield from _choices(_checked(response))
        except requests.RequestException as error:
            raise ApiFailure(f"the connection to {self._url} broke") from error
        except ValueError as error:
            raise ApiFailure(f"{self._url} sent an event that is not JSON") from error


def _choices(response: requests.Response) -> Iterator[dict[str, Any]]:
    """The choices of each event, up to `[DONE]`; a stream that ends without it has failed."""
    for line in response.iter_lines(chunk_size=1):
        if not line.startswith(b"data: "):
            continue
        data = line[6:]
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise ApiFailure(event["error"]["message"])
        yield from event["choices"]
    raise ApiFailure("the answer broke off")


def _checked(response: requests.Response) -> requests.Response:
    if response.ok:
        return response
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise ApiFailure(f"{response.status_code}: {message}")
