"""mixray with expert hosts as the benchmarks drive it: links and servers, without Ray."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.config import EngineConfig
from loadtest.bench.engine_adapter import DrivenEngine, load_shard, load_transformer
from model.checkpoint.load import open_checkpoint
from routing.expert_server import ExpertServer
from routing.expert_service import ExpertService, ServiceSpec
from routing.handshake import Identity
from routing.link_pool import LinkPool
from routing.placement import HostView, PlacementView
from routing.remote_experts import Patience, RemoteExperts
from routing.socket_link import SocketLink

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 120.0


class HostLost(Exception):
    """A link to an expert host failed in the middle of a benchmark."""


@dataclass(frozen=True, slots=True)
class HostAt:
    """A host, where it listens, and what it holds."""

    host_id: str
    address: str
    expert_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class FixedDirectory:
    """A placement that never changes: whoever is lost ends the benchmark."""

    hosts: tuple[HostView, ...]

    def view(self) -> PlacementView:
        """Give the placement."""
        return PlacementView(1, self.hosts)

    def wait_newer(self, version: int, timeout_s: float) -> PlacementView:
        """Give the placement; there will be no newer one."""
        return self.view()

    def report_lost(self, host_id: str) -> None:
        """Give up.

        Raises:
            HostLost: always.
        """
        raise HostLost(host_id)


def experts_of_hosts(num_experts: int, num_hosts: int) -> list[tuple[int, ...]]:
    """Deal experts out in turn: 8 over 3 are 0 3 6, 1 4 7, 2 5."""
    return [tuple(range(host, num_experts, num_hosts)) for host in range(num_hosts)]


def num_experts_of(model: Path) -> int:
    """Count a checkpoint's experts."""
    return open_checkpoint(model).config.num_experts


def expert_server(model: Path, host: HostAt, key: bytes) -> ExpertServer:
    """Load a host's experts and make a server of them; it is not started yet."""
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    shard = load_shard(checkpoint, host.expert_ids)
    spec = ServiceSpec(
        compute_rows=torch.inference_mode()(shard.compute_rows),
        expert_ids=lambda: shard.expert_ids,
        num_layers=config.num_layers,
        dim=config.dim,
        dtype=config.dtype,
        device=torch.device("cpu"),
    )
    identity = Identity(host.host_id, checkpoint.digest, config.dtype, key)
    return ExpertServer(ExpertService(spec, time.monotonic), identity, (host.address,))


def linked_engine(model: Path, hosts: Sequence[HostAt], key: bytes) -> tuple[DrivenEngine, int]:
    """Make a router's engine with its experts on hosts that serve already; and its vocabulary."""
    checkpoint = open_checkpoint(model)
    identity = Identity("router", checkpoint.digest, checkpoint.config.dtype, key)
    views = [
        HostView(host.host_id, "node", (host.address,), tuple(host.expert_ids)) for host in hosts
    ]
    pool = LinkPool(
        FixedDirectory(tuple(views)),
        lambda host: SocketLink(host.addresses[0], identity, CONNECT_TIMEOUT_S),
    )
    experts = RemoteExperts(pool, Patience(reply_s=REPLY_TIMEOUT_S))
    engine = DrivenEngine(load_transformer(checkpoint), experts, EngineConfig())
    return engine, checkpoint.config.vocab_size
