"""One connection from a router to an expert host.

Links are driven by the engine's own thread: `send` may block up to its deadline, `receive` never
does, and many links are waited for together through `fileno` with `selectors`.
"""

from typing import Protocol

from routing.messages import ComputeReply, ComputeRequest, Refusal
from routing.wire import Frame

Reply = ComputeReply | Refusal


class Link(Protocol):
    """What the link pool asks of a connection."""

    def send(self, request: ComputeRequest, payload: memoryview, timeout_s: float) -> None:
        """Send one request whole.

        Raises:
            LinkClosed: the host is gone.
            LinkTimeout: the host took no more bytes in time; the link is unusable after this.
        """

    def receive(self) -> list[Frame]:
        """Return the replies that have arrived whole; an empty list if none has.

        Raises:
            LinkClosed: the host is gone.
            FrameError: what came is not a frame.
        """

    def fileno(self) -> int:
        """A descriptor that turns readable when `receive` may return something."""

    def close(self) -> None:
        """Give the connection up; closing twice does no harm."""
