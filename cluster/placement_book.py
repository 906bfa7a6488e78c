"""Who holds which expert, and who shall: the state behind the Placement deployment. No Ray here.

Change is make-before-break: a host that is to give up an expert keeps serving it until the host
that takes it over says that it holds it. The book is soft state: hosts tell it everything again if
it is lost. The clock is an argument.
"""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from routing.errors import PlacementError
from routing.placement import HostView, PlacementView, place

logger = logging.getLogger(__name__)

LOST_AFTER_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HostInfo:
    """What an expert host says of itself when it joins."""

    host_id: str
    node_id: str
    node_ip: str
    pid: int
    addresses: tuple[str, ...]
    num_slots: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HostReport:
    """What an expert host tells with every beat: rows computed so far, and how loading goes."""

    rows_by_expert: Mapping[int, int] = field(default_factory=dict)
    loaded_bytes: int = 0
    wanted_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HostStatus:
    """A living host: who it is, what it holds, what it reported last."""

    info: HostInfo
    expert_ids: tuple[int, ...]
    report: HostReport


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterInfo:
    """What a router says of itself whenever it asks for the placement."""

    router_id: str
    node_id: str
    node_ip: str
    pid: int
    num_running: int
    num_waiting: int
    kv_tokens_used: int
    kv_tokens: int
    num_lost_hosts: int = 0
    num_resent: int = 0


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a router must know: the placement, and the key that opens links, once a host joined."""

    view: PlacementView
    key: bytes | None


@dataclass(slots=True)
class _Host:
    info: HostInfo
    last_seen_s: float
    held: frozenset[int] = frozenset()
    report: HostReport = field(default_factory=HostReport)
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class _RouterSeen:
    info: RouterInfo
    last_seen_s: float


class PlacementBook:
    """Mutable state: the living hosts and routers, the target, the cluster key, the version.

    Args:
        patience_s: experts are first placed when `num_hosts` have joined, or when no more have for
            so long.
        epoch_ms: versions count from here; those of a book that replaces a lost one must be higher.

    Attributes:
        num_hosts: how many hosts there shall be.
    """

    def __init__(self, num_experts: int, patience_s: float, now_s: float, epoch_ms: int) -> None:
        self.num_hosts = 1
        self._num_experts = num_experts
        self._patience_s = patience_s
        self._start_at_s = now_s + patience_s
        self._hosts: dict[str, _Host] = {}
        self._routers: dict[str, _RouterSeen] = {}
        self._target: dict[str, tuple[int, ...]] = {}
        self._key: bytes | None = None
        self._view = PlacementView(epoch_ms, ())

    @property
    def key(self) -> bytes:
        """The cluster key, made for the first host that joins unless it brought one along."""
        if self._key is None:
            self._key = secrets.token_bytes(32)
        return self._key

    def join(self, info: HostInfo, held: frozenset[int], key: bytes | None, now_s: float) -> None:
        """Take in a host; `held` and `key` are what it still has from an earlier book."""
        self._key = self._key or key
        self._start_at_s = now_s + self._patience_s
        self._hosts[info.host_id] = _Host(info, now_s, held)
        self._replan(now_s)

    def beat(
        self, host_id: str, held: frozenset[int], report: HostReport, now_s: float
    ) -> frozenset[int] | None:
        """Note what a host holds now; what it shall hold, or None if the book does not know it."""
        host = self._hosts.get(host_id)
        if host is None:
            return None
        host.last_seen_s = now_s
        host.report = report
        host.held = held
        assigned = self._assigned(host_id)
        # What it is told to drop is gone, even if a change of plan would rather have it stay.
        host.held = held & assigned
        self._publish()
        return assigned

    def leave(self, host_id: str, now_s: float) -> None:
        """Plan without a host; it keeps what no other host holds yet."""
        if host_id in self._hosts:
            self._hosts[host_id].is_leaving = True
            self._replan(now_s)

    def lose(self, host_id: str, now_s: float) -> None:
        """Take out a host that cannot be reached; if it lives it will join again."""
        if self._hosts.pop(host_id, None) is not None:
            logger.warning("host=%s lost", host_id)
            self._replan(now_s)

    def sweep(self, now_s: float) -> None:
        """Take out whoever has been silent for too long; begin if the hosts are late."""
        silent = [
            host_id
            for host_id, host in self._hosts.items()
            if now_s - host.last_seen_s > LOST_AFTER_S
        ]
        for host_id in silent:
            self.lose(host_id, now_s)
        self._routers = {
            router_id: seen
            for router_id, seen in self._routers.items()
            if now_s - seen.last_seen_s <= LOST_AFTER_S
        }
        if self._hosts and not self._target:
            self._replan(now_s)

    def brief(self, router: RouterInfo, now_s: float) -> Briefing:
        """Note that a router lives, and tell it what it must know."""
        self._routers[router.router_id] = _RouterSeen(router, now_s)
        return Briefing(self._view, self._key)

    def hosts(self) -> list[HostStatus]:
        """Living hosts."""
        return [
            HostStatus(info=host.info, expert_ids=tuple(sorted(host.held)), report=host.report)
            for host in self._hosts.values()
        ]

    def routers(self) -> list[RouterInfo]:
        """Living routers."""
        return [seen.info for seen in self._routers.values()]

    @property
    def version(self) -> int:
        """The version of the placement that routers see."""
        return self._view.version

    def _assigned(self, host_id: str) -> frozenset[int]:
        """The host's target, and what it must keep until another host holds it."""
        target = frozenset(self._target.get(host_id, ()))
        elsewhere = {
            expert_id
            for other_id, other in self._hosts.items()
            if other_id != host_id
            for expert_id in other.held & set(self._target.get(other_id, ()))
        }
        return target | (self._hosts[host_id].held - elsewhere)

    def _replan(self, now_s: float) -> None:
        if not self._target and len(self._hosts) < self.num_hosts and now_s < self._start_at_s:
            # Hosts of a lost book go on serving what they hold.
            self._publish()
            return
        slots = {
            host_id: host.info.num_slots
            for host_id, host in self._hosts.items()
            if not host.is_leaving
        }
        current = {
            host_id: self._target.get(host_id) or tuple(sorted(host.held))
            for host_id, host in self._hosts.items()
        }
        try:
            self._target = place(self._num_experts, slots, current, [1.0] * self._num_experts)
        except PlacementError as error:
            # What is held stays served; the next host to join brings the rest back.
            logger.warning("%s", error)
            self._target = dict(current)
        self._publish()

    def _publish(self) -> None:
        hosts = tuple(
            HostView(
                host_id,
                host.info.node_id,
                host.info.addresses,
                tuple(sorted(host.held & self._assigned(host_id))),
            )
            for host_id, host in sorted(self._hosts.items())
        )
        if hosts != self._view.hosts:
            self._view = PlacementView(self._view.version + 1, hosts)
