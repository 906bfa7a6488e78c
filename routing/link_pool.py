"""All links of one router, and the choice of the host that gets an expert's rows.

The pool follows the placement: it connects to hosts when it first needs them, drops links that
fail, and tells the directory about every loss so that the experts can be taken over elsewhere.
Mutable state: the view it follows, the open links and when each was last heard, the hosts that it
waits to retry, the experts that hosts have disowned.
"""

import logging
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from routing.errors import FrameError, LinkError
from routing.link import Link, Reply
from routing.messages import ComputeReply, ComputeRequest, Refusal
from routing.placement import HostView, PlacementView

logger = logging.getLogger(__name__)

RETRY_HOST_AFTER_S = 1.0


class Directory(Protocol):
    """Where the pool learns the placement. All methods return at once but `wait_newer`."""

    def view(self) -> PlacementView:
        """The newest placement known here."""

    def wait_newer(self, version: int, timeout_s: float) -> PlacementView:
        """The placement once it is newer than `version`, or the known one after `timeout_s`."""

    def report_lost(self, host_id: str) -> None:
        """Say that this router can no longer reach a host."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A host's reply and its payload."""

    host_id: str
    reply: Reply
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Lost:
    """A host whose link failed; nothing sent to it before will be answered."""

    host_id: str


class LinkPool:
    """Links by host. `repr` shows the state."""

    def __init__(
        self,
        directory: Directory,
        connect: Callable[[HostView], Link],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._connect = connect
        self._now_s = now_s
        self._view = directory.view()
        self._links: dict[str, Link] = {}
        self._heard_at_s: dict[str, float] = {}
        self._retry_at_s: dict[str, float] = {}
        self._disowned: set[tuple[str, int]] = set()
        self._selector = selectors.DefaultSelector()

    def __repr__(self) -> str:
        return f"<LinkPool version {self._view.version}, linked {sorted(self._links)}>"

    @property
    def version(self) -> int:
        """The placement version that the pool follows."""
        return self._view.version

    def refresh(self) -> list[Lost]:
        """Follow the newest placement; close the links to hosts that left it."""
        view = self._directory.view()
        if view.version == self._view.version:
            return []
        self._view = view
        self._disowned.clear()
        present = {host.host_id for host in view.hosts}
        now_s = self._now_s()
        self._retry_at_s = {h: at_s for h, at_s in self._retry_at_s.items() if at_s > now_s}
        return [self._close(host_id) for host_id in self._links.keys() - present]

    def wait_newer(self, timeout_s: float) -> list[Lost]:
        """Wait for a placement newer than the one followed, then follow it."""
        self._directory.wait_newer(self._view.version, timeout_s)
        return self.refresh()

    def heard_at_s(self, host_id: str) -> float:
        """When bytes last came from a linked host; when it was linked if none has."""
        return self._heard_at_s[host_id]

    def owner(self, expert_id: int) -> str | None:
        """A linked host that serves the expert, connecting if need be; None if there is none."""
        for host in self._view.hosts:
            if expert_id in host.expert_ids and (host.host_id, expert_id) not in self._disowned:
                if host.host_id in self._links or self._try_connect(host):
                    return host.host_id
        return None

    def disown(self, host_id: str, expert_id: int, version: int) -> None:
        """Ask the host no more for this expert under `version`, if that is still followed."""
        if version == self._view.version:
            self._disowned.add((host_id, expert_id))

    def send(
        self, host_id: str, request: ComputeRequest, payload: memoryview, timeout_s: float
    ) -> Lost | None:
        """Send to a linked host; the loss if that fails."""
        try:
            self._links[host_id].send(request, payload, timeout_s)
        except LinkError as error:
            return self.drop(host_id, str(error))
        return None

    def poll(self, timeout_s: float) -> list[Arrived | Lost]:
        """Wait until any link has news, at most `timeout_s`."""
        events: list[Arrived | Lost] = []
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            events.extend(self._receive(key.data))
        return events

    def drop(self, host_id: str, reason: str) -> Lost:
        """Close the link and report the host lost."""
        logger.warning("host=%s link lost: %s", host_id, reason)
        self._retry_at_s[host_id] = self._now_s() + RETRY_HOST_AFTER_S
        self._directory.report_lost(host_id)
        return self._close(host_id)

    def close(self) -> None:
        """Close every link."""
        for host_id in list(self._links):
            self._close(host_id)
        self._selector.close()

    def _receive(self, host_id: str) -> list[Arrived | Lost]:
        self._heard_at_s[host_id] = self._now_s()
        try:
            frames = self._links[host_id].receive()
        except (LinkError, FrameError) as error:
            return [self.drop(host_id, str(error))]
        events: list[Arrived | Lost] = []
        for frame in frames:
            if not isinstance(frame.message, ComputeReply | Refusal):
                return [*events, self.drop(host_id, f"{type(frame.message).__name__} is no reply")]
            events.append(Arrived(host_id, frame.message, frame.payload))
        return events

    def _try_connect(self, host: HostView) -> bool:
        if self._now_s() < self._retry_at_s.get(host.host_id, 0.0):
            return False
        try:
            link = self._connect(host)
        except LinkError as error:
            self.drop(host.host_id, str(error))
            return False
        self._links[host.host_id] = link
        self._heard_at_s[host.host_id] = self._now_s()
        self._selector.register(link.fileno(), selectors.EVENT_READ, host.host_id)
        return True

    def _close(self, host_id: str) -> Lost:
        link = self._links.pop(host_id, None)
        if link is not None:
            del self._heard_at_s[host_id]
            self._selector.unregister(link.fileno())
            link.close()
        return Lost(host_id)
