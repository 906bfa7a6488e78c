"""The Placement deployment: the book, behind Serve. Hosts and routers ask; it never calls them."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from cluster.placement_book import (
    Briefing,
    HostInfo,
    HostReport,
    HostStatus,
    PlacementBook,
    RouterInfo,
)

POLL_S = 1.0
FIRST_PLACEMENT_PATIENCE_S = 5.0

Answer = TypeVar("Answer")


class Placement:
    """Answers as soon as there is news for whoever asks, and after a second at the latest."""

    def __init__(self, num_experts: int) -> None:
        self._book = PlacementBook(
            num_experts,
            FIRST_PLACEMENT_PATIENCE_S,
            time.monotonic(),
            time.time_ns() // 1_000_000,
        )
        self._news = asyncio.Event()

    def reconfigure(self, user_config: dict[str, int]) -> None:
        """Called by Serve at the start and whenever the number of hosts changes."""
        self._book.num_hosts = user_config["num_hosts"]

    async def join(self, info: HostInfo, held: frozenset[int], key: bytes | None) -> bytes:
        """Take in a host; the cluster key."""
        self._book.join(info, held, key, time.monotonic())
        self._tell()
        return self._book.key

    async def leave(self, host_id: str) -> None:
        """Move a host's experts elsewhere; it serves them until they are there."""
        self._book.leave(host_id, time.monotonic())
        self._tell()

    async def beat(
        self, host_id: str, held: frozenset[int], report: HostReport
    ) -> frozenset[int] | None:
        """What the host shall hold, once that differs from `held`; None: it must join again."""
        version = self._book.version
        self._book.beat(host_id, held, report, time.monotonic())
        if self._book.version != version:
            self._tell()
        return await self._when(
            lambda: self._book.beat(host_id, held, report, time.monotonic()),
            lambda assigned: assigned != held,
        )

    async def brief(self, router: RouterInfo, known_version: int) -> Briefing:
        """The placement, once it is newer than `known_version`."""
        return await self._when(
            lambda: self._book.brief(router, time.monotonic()),
            lambda briefing: briefing.view.version != known_version,
        )

    async def report_lost(self, host_id: str) -> None:
        """Take out a host that a router cannot reach."""
        self._book.lose(host_id, time.monotonic())
        self._tell()

    async def status(self) -> dict[str, object]:
        """What runs where, as plain data."""
        return {
            "version": self._book.version,
            "expert_hosts": [_describe_host(host) for host in self._book.hosts()],
            "routers": [_describe_router(router) for router in self._book.routers()],
        }

    async def _when(self, ask: Callable[[], Answer], is_news: Callable[[Answer], bool]) -> Answer:
        """Ask until there is news, at most `POLL_S` long."""
        end_s = time.monotonic() + POLL_S
        while True:
            self._sweep()
            answer = ask()
            remaining_s = end_s - time.monotonic()
            if is_news(answer) or remaining_s <= 0:
                return answer
            try:
                await asyncio.wait_for(self._news.wait(), remaining_s)
            except TimeoutError:
                return answer

    def _sweep(self) -> None:
        version = self._book.version
        self._book.sweep(time.monotonic())
        if self._book.version != version:
            self._tell()

    def _tell(self) -> None:
        """Wake everybody who waits, and let the next ones wait on a new event."""
        self._news.set()
        self._news = asyncio.Event()


def _describe_host(host: HostStatus) -> dict[str, object]:
    rows = sorted(host.report.rows_by_expert.items())
    return {
        "id": host.info.host_id,
        "pid": host.info.pid,
        "node": host.info.node_ip,
        "address": host.info.addresses[-1],
        "addresses": list(host.info.addresses),
        "slots": host.info.num_slots,
        "experts": list(host.expert_ids),
        "rows_by_expert": {str(expert_id): num_rows for expert_id, num_rows in rows},
        "loaded_bytes": host.report.loaded_bytes,
        "wanted_bytes": host.report.wanted_bytes,
    }


def _describe_router(router: RouterInfo) -> dict[str, object]:
    return {
        "id": router.router_id,
        "pid": router.pid,
        "node": router.node_ip,
        "running": router.num_running,
        "waiting": router.num_waiting,
        "kv_tokens_used": router.kv_tokens_used,
        "kv_tokens": router.kv_tokens,
        "lost_hosts": router.num_lost_hosts,
        "resent": router.num_resent,
    }
