"""The Python client of a running mixray: from any driver or task on the same Ray cluster.

    from cluster.handle import connect

    mixray = connect()
    print(mixray.generate("The capital of France is", max_tokens=8).text)
    for piece in mixray.stream(messages=[{"role": "user", "content": "Hello"}]):
        print(piece.text, end="")

Options are those of the HTTP API: max_tokens, temperature, top_p, top_k, min_p, seed, stop, the
penalties, logit_bias, priority, cache_salt, ignore_eos. Knows no torch; tokens and text are the
ingress's business.
"""

import logging
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from cluster.errors import NotReady

APP_NAME = "mixray"
CONNECT_TIMEOUT_S = 3.0

Messages = Sequence[dict[str, str]]
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece; `finish_reason` is "stop" or "length" on the last one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


class Client:
    """A connection to one application. Every method takes a prompt or messages, not both."""

    def __init__(self, ingress: DeploymentHandle[Any]) -> None:
        self._ingress = ingress

    def generate(
        self, prompt: Prompt | None = None, *, messages: Messages | None = None, **options: Any
    ) -> Piece:
        """Wait for the whole answer.

        Raises:
            ValueError: an option or the prompt is wrong; names it.
            EngineBusy, NotReady, ExpertUnavailable: the request cannot be served now.
        """
        return _join(self.stream(prompt, messages=messages, **options))

    def stream(
        self, prompt: Prompt | None = None, *, messages: Messages | None = None, **options: Any
    ) -> Iterator[Piece]:
        """Give the answer as it comes; raises as `generate`."""
        response = self._start(_body(prompt, messages, options))
        try:
            yield from response
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise NotReady("the ingress was lost") from error
        finally:
            response.cancel()  # type: ignore[no-untyped-call]

    async def agenerate(
        self, prompt: Prompt | None = None, *, messages: Messages | None = None, **options: Any
    ) -> Piece:
        """`generate` for coroutines."""
        pieces = self.astream(prompt, messages=messages, **options)
        return _join([piece async for piece in pieces])

    async def astream(
        self, prompt: Prompt | None = None, *, messages: Messages | None = None, **options: Any
    ) -> AsyncIterator[Piece]:
        """`stream` for coroutines."""
        response = self._start(_body(prompt, messages, options))
        try:
            async for piece in response:
                yield piece
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise NotReady("the ingress was lost") from error
        finally:
            response.cancel()  # type: ignore[no-untyped-call]

    def status(self) -> dict[str, Any]:
        """What runs where: `expert_hosts` and `routers`, each a list of dictionaries."""
        return cast(dict[str, Any], self._ingress.status.remote().result(timeout_s=10))

    def _start(self, body: dict[str, Any]) -> DeploymentResponseGenerator[Piece]:
        ingress = self._ingress.options(stream=True)
        return cast(DeploymentResponseGenerator[Piece], ingress.generate.remote(body))


def connect(address: str = "auto", app_name: str = APP_NAME) -> Client:
    """Connect to a running application, and to its Ray cluster if this process is in none.

    Args:
        app_name: Serve's name of the application; `serve run` without `--name` calls it "default".

    Raises:
        NotReady: there is no cluster, or no such application on it.
    """
    try:
        if not ray.is_initialized():
            _check_reachable(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except OSError as error:
        raise NotReady(f"no Ray cluster at {address}; `mixray serve` starts one") from error
    try:
        return Client(serve.get_app_handle(app_name))
    except Exception as error:
        raise NotReady(f"no application {app_name!r} runs on this cluster") from error


def _check_reachable(address: str) -> None:
    """Fail in seconds where Ray itself would try for minutes.

    Raises:
        OSError: nobody listens at the address, which is HOST:PORT, or a word that Ray knows.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


def _body(
    prompt: Prompt | None, messages: Messages | None, options: dict[str, Any]
) -> dict[str, Any]:
    """A body of the HTTP API.

    Raises:
        ValueError: both a prompt and messages, or neither.
    """
    if (prompt is None) == (messages is None):
        raise ValueError("want a prompt or messages, and not both")
    if prompt is None:
        return {**options, "messages": list(messages or ())}
    return {**options, "prompt": prompt if isinstance(prompt, str) else list(prompt)}


def _join(pieces: Iterable[Piece]) -> Piece:
    text = ""
    token_ids: list[int] = []
    finish_reason = None
    for piece in pieces:
        text += piece.text
        token_ids.extend(piece.token_ids)
        finish_reason = piece.finish_reason
    return Piece(text, tuple(token_ids), finish_reason)
