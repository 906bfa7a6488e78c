"""Expert hosts for tests: in memory, and behind sockets of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from model.config import ModelConfig
from model.experts import ExpertShard, networks_of
from routing.expert_server import ExpertServer, ServerLimits
from routing.expert_service import ExpertService, ServiceSpec
from routing.handshake import Identity
from routing.link import Link
from routing.link_pool import LinkPool
from routing.memory_link import MemoryLink
from routing.placement import HostView
from routing.remote_experts import Patience, RemoteExperts
from routing.socket_link import SocketLink
from tests.faults import FakeClock, FakeDirectory, FakeTimePool, FaultyLink, Script

KEY = b"k" * 32
DIM = 4
NUM_EXPERTS = 8


def identity(
    name: str = "peer", key: bytes = KEY, digest: str = "digest", dtype: str = "float32"
) -> Identity:
    """One end of a link."""
    return Identity(name, digest, dtype, key)


def times_expert(layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]) -> Tensor:
    """Multiply the rows of expert e of layer l by 100 l + e + 1."""
    y_RD = torch.empty_like(x_RD)
    for expert_id, (first, end) in slices.items():
        y_RD[first:end] = x_RD[first:end] * (100 * layer + expert_id + 1)
    return y_RD


def service_of(
    compute_rows: Callable[..., Tensor] = times_expert,
    expert_ids: Callable[[], tuple[int, ...]] = lambda: tuple(range(NUM_EXPERTS)),
    now_s: Callable[[], float] | None = None,
    dim: int = DIM,
) -> ExpertService:
    """A service with three layers."""
    spec = ServiceSpec(
        compute_rows=compute_rows,
        expert_ids=expert_ids,
        num_layers=3,
        dim=dim,
        dtype="float32",
        device=torch.device("cpu"),
    )
    return ExpertService(spec, now_s or FakeClock())


@contextmanager
def serving(
    service: ExpertService,
    addresses: Sequence[str] = ("tcp:127.0.0.1:0",),
    limits: ServerLimits | None = None,
) -> Iterator[ExpertServer]:
    """A server that runs inside the block."""
    server = ExpertServer(service, identity("host"), addresses, limits)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Hosts:
    """The experts of a model on hosts of this process. Mutable state: what each shard holds."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        num_hosts: int,
        tile_rows: int | None = None,
    ) -> None:
        self.slots = {f"host-{number}": config.num_experts for number in range(num_hosts)}
        self.services: dict[str, ExpertService] = {}
        self._config = config
        self._tensors = tensors
        self._tile_rows = tile_rows
        self._shards = {host_id: ExpertShard() for host_id in self.slots}
        for host_id, shard in self._shards.items():
            self.services[host_id] = self._service(shard)

    def hold(self, host_id: str, expert_ids: Sequence[int]) -> None:
        """Load and drop experts until the host holds just these."""
        shard = self._shards[host_id]
        held = set(shard.expert_ids)
        for expert_id in sorted(set(expert_ids) - held):
            num_layers = self._config.num_layers
            networks = networks_of(self._tensors, num_layers, expert_id, self._tile_rows)
            shard.add(expert_id, networks)
        shard.remove(held - set(expert_ids))

    def _service(self, shard: ExpertShard) -> ExpertService:
        spec = ServiceSpec(
            compute_rows=torch.inference_mode()(shard.compute_rows),
            expert_ids=lambda: shard.expert_ids,
            num_layers=self._config.num_layers,
            dim=self._config.dim,
            dtype="float32",
            device=torch.device("cpu"),
        )
        return ExpertService(spec, FakeClock())


class MemoryCluster:
    """Hosts, a directory and remote experts over memory links that may obey a script."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        num_hosts: int,
        script: Script | None = None,
        clock: FakeClock | None = None,
        patience: Patience | None = None,
        tile_rows: int | None = None,
    ) -> None:
        clock = clock or FakeClock()
        self.hosts = Hosts(config, tensors, num_hosts, tile_rows)
        self.script = script or Script()
        self.directory = FakeDirectory(config.num_experts, self.hosts.slots, self.hosts.hold, clock)
        self.pool = FakeTimePool(self.directory, self._connect, clock)
        self.experts = RemoteExperts(self.pool, patience or Patience(), clock)

    def _connect(self, host: HostView) -> Link:
        return FaultyLink(MemoryLink(self.hosts.services[host.host_id]), self.script)


@contextmanager
def socket_experts(
    config: ModelConfig, tensors: Mapping[str, Tensor], num_hosts: int, address: str
) -> Iterator[RemoteExperts]:
    """Remote experts over sockets to real servers; `address` is formatted with the host's id."""
    hosts = Hosts(config, tensors, num_hosts)
    directory = FakeDirectory(config.num_experts, hosts.slots, hosts.hold, FakeClock())
    servers = {
        host_id: ExpertServer(service, identity(host_id), [address.format(host_id)])
        for host_id, service in hosts.services.items()
    }
    for server in servers.values():
        server.start()
    pool = LinkPool(
        directory, lambda host: SocketLink(servers[host.host_id].addresses[0], identity(), 5.0)
    )
    try:
        yield RemoteExperts(pool, Patience())
    finally:
        pool.close()
        for server in servers.values():
            server.stop()
