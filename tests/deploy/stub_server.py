"""An HTTP server that plays the API: one script for each request for an answer."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stub-model"
Script = Sequence[str]


@dataclass
class Stub:
    """What the server plays and what it was asked.

    Attributes:
        scripts: the lines of each answer; a status alone refuses.
        bodies: what was asked for.
    """

    scripts: list[Script | int]
    is_cut: bool = False
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)


def chat_events(*pieces: str) -> list[str]:
    """A whole streamed chat answer."""
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    return [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]


def text_events(*pieces: str) -> list[str]:
    """A whole streamed completion."""
    events = [{"choices": [{"text": piece}]} for piece in pieces]
    return [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]


def error_event(message: str) -> str:
    """What ends a stream that failed."""
    return f"data: {json.dumps({'error': {'message': message}})}"


@contextmanager
def serving(stub: Stub) -> Iterator[None]:
    """The stub at a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(stub))
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="stub")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler_of(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            stub.bodies.append(json.loads(self.rfile.read(length)))
            script = stub.scripts.pop(0)
            if isinstance(script, int):
                self._answer(script, {"error": {"message": "no room for this"}})
            else:
                self._play(script)

        def _play(self, script: Script) -> None:
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.send_header("connection", "close")
            self.end_headers()
            for line in script:
                data = f"{line}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            if not stub.is_cut:
                self.wfile.write(b"0\r\n\r\n")

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
