import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster.errors import EngineStopped
from deploy.api.generation import merge
from deploy.api.routes import create_app
from tests.deploy.fakes import MODEL, FakeBackend, Step, event, playing, saying, service

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
HELLO: Step = (event(22_557),)


class Connection:
    """One request, driven by hand, so that the client can go away at any moment."""

    def __init__(self, backend: FakeBackend, body: dict[str, Any]) -> None:
        self._app = create_app(service(backend))
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait(
            {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        )
        self.sent: list[dict[str, Any]] = []

    def disconnect(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def run(self) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("test", 80),
            "root_path": "",
        }
        await self._app(scope, self._incoming.get, self._send)

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def within_2s(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(), timeout=2)
        assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

    asyncio.run(main())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [[], [HELLO]], ids=["before a token", "after a token"])
def test_a_client_that_goes_away_cancels_its_request(
    steps: list[Step], stream: bool, n: int
) -> None:
    async def test() -> None:
        backend = FakeBackend(playing(*steps))
        connection = Connection(backend, {**HI, "stream": stream, "n": n})

        task = asyncio.create_task(connection.run())
        await backend.is_waiting.wait()
        connection.disconnect()
        await task

        assert backend.num_open == 0
        assert len(backend.cancelled) == n
        assert "[DONE]" not in connection.text

    within_2s(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stops_cancels_the_request(stream: bool) -> None:
    async def test() -> None:
        backend = FakeBackend(playing(HELLO))
        connection = Connection(backend, {**HI, "stream": stream})

        task = asyncio.create_task(connection.run())
        await backend.is_waiting.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert task.cancelled()
        assert backend.num_open == 0

    within_2s(test)


def test_tokens_are_sent_as_they_come() -> None:
    async def test() -> None:
        backend = FakeBackend(playing(HELLO))
        connection = Connection(backend, {**HI, "stream": True})

        task = asyncio.create_task(connection.run())
        await backend.is_waiting.wait()
        while '"content":"Hello"' not in connection.text:
            await asyncio.sleep(0)
        connection.disconnect()
        await task

    within_2s(test)


@pytest.mark.parametrize("body", [{}, {"stream_options": {"include_usage": True}}, {"n": 2}])
def test_a_stream_that_fails_ends_with_an_error_and_without_done(body: dict[str, Any]) -> None:
    backend = FakeBackend(playing(HELLO, EngineStopped("the engine was shut down")))
    client = TestClient(create_app(service(backend)))

    response = client.post(CHAT, json={**HI, **body, "stream": True})

    assert response.status_code == 200
    *_, last, empty = response.text.split("\n\n")
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {
            "message": "the engine was shut down",
            "type": "server_error",
            "param": None,
            "code": "engine_stopped",
        }
    }
    assert empty == ""
    assert "[DONE]" not in response.text
    assert backend.num_open == 0


def test_a_fault_in_a_stream_is_logged_once_and_not_explained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FakeBackend(playing(HELLO, ZeroDivisionError("secret")))
    client = TestClient(create_app(service(backend)))

    with caplog.at_level(logging.ERROR):
        response = client.post(CHAT, json={**HI, "stream": True})

    assert "secret" not in response.text
    assert '"code":"internal_error"' in response.text
    assert len(caplog.records) == 1


def test_tokens_that_end_without_a_reason_are_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(FakeBackend):
        async def stream(self, request: Any) -> Any:
            yield HELLO

    client = TestClient(create_app(service(Breaking())))

    streamed = client.post(CHAT, json={**HI, "stream": True})
    whole = client.post(CHAT, json=HI)

    assert "internal_error" in streamed.text
    assert "[DONE]" not in streamed.text
    assert whole.status_code == 500


def test_two_clients_do_not_disturb_each_other() -> None:
    async def test() -> None:
        waiting, speaking = FakeBackend(playing(HELLO)), FakeBackend(saying("Hello world"))
        gone = Connection(waiting, {**HI, "stream": True})
        stays = Connection(speaking, HI)

        task = asyncio.create_task(gone.run())
        await waiting.is_waiting.wait()
        gone.disconnect()
        await asyncio.gather(task, stays.run())

        assert "Hello world" in stays.text

    within_2s(test)


def test_merge_closes_all_streams_when_closed() -> None:
    closed: list[int] = []

    async def count(start: int) -> Any:
        try:
            for number in range(start, start + 100):
                yield number
        finally:
            closed.append(start)

    async def test() -> None:
        merged = merge([count(0), count(100)])
        assert await anext(merged) in (0, 100)
        await merged.aclose()
        assert sorted(closed) == [0, 100]

    within_2s(test)
