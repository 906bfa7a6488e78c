"""A server that streams what a test tells it, over a real socket."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stub"
DONE = "[DONE]"


def chunk(content: str, token_ids: Sequence[int] | None = None) -> str:
    """One event of a chat stream."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    if token_ids is not None:
        choice["token_ids"] = list(token_ids)
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice]})


OPENING = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


@dataclass
class Script:
    """What the server answers.

    Attributes:
        events: data of the events of a stream; the connection ends after the last.
        is_cut: end without the last chunk of the transfer encoding.
        models: the list of models.
        bodies: all that were asked; `paths` says where.
        num_connections: that were opened.
    """

    status: int = 200
    events: Sequence[str] = (OPENING, chunk("a", [7]), chunk("bc", [8, 9]), DONE)
    is_cut: bool = False
    models: str = json.dumps({"object": "list", "data": [{"id": MODEL}]})
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    num_connections: int = 0


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Serve on loopback; gives the URL."""
    server = _Server(("127.0.0.1", 0), _handler_of(script))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is none."""


def _handler_of(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            script.num_connections += 1

        def do_GET(self) -> None:
            self._answer(200, script.models)

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            script.paths.append(self.path)
            script.bodies.append(json.loads(self.rfile.read(length)))
            if script.status != 200:
                self._answer(script.status, '{"error": {"message": "the queue is full"}}')
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in script.events:
                data = f"data: {event}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if script.is_cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    return Handler
