"""A link to an expert service in the same process. Shipped: tests and experiments use it.

Messages pass through the codec, so that what is tested over memory holds over sockets.
"""

import os

from routing.errors import LinkClosed
from routing.expert_service import ExpertService
from routing.link import Reply
from routing.messages import ComputeRequest, Message
from routing.wire import Frame, FrameReader, encode


class MemoryLink:
    """Computes as soon as it is sent to; a pipe makes the replies selectable."""

    def __init__(self, service: ExpertService) -> None:
        self._service = service
        self._replies: list[Frame] = []
        self._readable, self._writable = os.pipe()
        self._is_closed = False

    def send(self, request: ComputeRequest, payload: memoryview, timeout_s: float) -> None:
        self._check_open()
        frame = _through_the_codec(request, payload)
        assert isinstance(frame.message, ComputeRequest)
        self._service.submit(frame.message, frame.payload, self._answer)
        while not self._service.is_idle:
            self._service.step()

    def receive(self) -> list[Frame]:
        self._check_open()
        replies, self._replies = self._replies, []
        if replies:
            os.read(self._readable, len(replies))
        return replies

    def fileno(self) -> int:
        return self._readable

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            os.close(self._readable)
            os.close(self._writable)

    def _answer(self, reply: Reply, payload: memoryview | None) -> None:
        if not self._is_closed:
            self._replies.append(_through_the_codec(reply, payload))
            os.write(self._writable, b"\0")

    def _check_open(self) -> None:
        if self._is_closed:
            raise LinkClosed("the link was closed")


def _through_the_codec(message: Message, payload: memoryview | None) -> Frame:
    reader = FrameReader()
    data = b"".join(encode(message, payload))
    while True:
        buffer = reader.buffer()
        buffer[:] = data[: len(buffer)]
        data = data[len(buffer) :]
        frame = reader.received(len(buffer))
        if frame is not None:
            return frame
