"""The Router deployment: attention, KV cache, gate, dispatch, combine and sampling.

One engine runs in one thread of its own; Serve's event loop only passes requests in and tokens
out. Hidden states go over the router's own links to the expert hosts, and tokens on their way over
its own connections to the ingresses, never through Ray.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from cluster.addresses import choose_address
from cluster.config import ClusterConfig, LinkKind
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.engine.request import GenerateRequest, TokenEvent
from cluster.errors import EngineStopped, NotReady
from cluster.placement_book import RouterInfo
from cluster.placement_follower import PlacementFollower
from cluster.postman import Postman
from cluster.token_link import MailboxAddress
from cluster.whereabouts import whereabouts
from model.checkpoint.load import Checkpoint, open_checkpoint
from model.checkpoint.names import router_names
from model.experts import ExpertShard, load_experts
from model.transformer import Transformer
from routing.errors import RoutingError
from routing.experts import LocalExperts
from routing.handshake import Identity
from routing.link_pool import LinkPool
from routing.placement import HostView
from routing.remote_experts import RemoteExperts
from routing.socket_link import SocketLink

PLACEMENT_PATIENCE_S = 120.0
CONNECT_TIMEOUT_S = 3.0
PROBE_TIMEOUT_S = 10.0
PROBE_IS_FRESH_S = 2.0
STOP_TIMEOUT_S = 5.0


class Router:
    """One router. Ready once its constructor returns: a token went through every expert."""

    def __init__(self, config: ClusterConfig, placement: DeploymentHandle[Any]) -> None:
        self._place = whereabouts()
        self._router_id = f"router-{self._place.actor_id[:8]}"
        self._probed_at_s = float("-inf")
        self._postman = Postman(self._place.node_id, config.link)
        checkpoint = open_checkpoint(Path(config.model_dir))
        [transformer] = checkpoint.build(
            lambda weights: Transformer(checkpoint.config, weights, config.deterministic),
            [router_names(checkpoint.config)],
            config.dtype,
            config.device,
        )
        self._follower = PlacementFollower(placement, self._describe)
        self._remote = self._remote_experts(config, checkpoint) if config.has_expert_hosts else None
        experts = self._remote or _local_experts(config, checkpoint)
        runner = ModelRunner(transformer, experts, config.engine)
        self._engine = Engine(runner, config.engine)
        self._thread = threading.Thread(target=self._engine.run, name="engine", daemon=True)
        self._follower.start()
        if config.has_expert_hosts:
            _wait_until_covered(self._follower, checkpoint.config.num_experts)
        self._thread.start()
        self._probe = self._engine.probe()
        self._probe.result(timeout=PLACEMENT_PATIENCE_S)

    async def generate(self, request: GenerateRequest, mailbox: MailboxAddress) -> list[TokenEvent]:
        """Generate; the tokens go to the mailbox as they come, and are returned all together.

        Raises:
            EngineBusy: the queue is full.
            RequestTooLarge: the request could never fit into the cache.
            ExpertUnavailable: an expert is gone and nobody took it over in time.
            RequestFailed: an internal fault.
        """
        delivery = self._postman.begin(request.request_id, mailbox)
        self._engine.add_request(request, delivery)
        try:
            return await delivery.answer()
        finally:
            self._engine.cancel(request.request_id)
            self._postman.end(delivery)

    async def check_ready(self) -> None:
        """Return if a token went through every layer and every expert within the last seconds.

        Raises:
            NotReady: it could not.
        """
        # However many ask, one probe is under way at most, and it holds for a while.
        if self._probe.done() and time.monotonic() - self._probed_at_s > PROBE_IS_FRESH_S:
            self._probed_at_s = time.monotonic()
            self._probe = self._engine.probe()
        try:
            future = asyncio.wrap_future(self._probe)
            await asyncio.wait_for(asyncio.shield(future), PROBE_TIMEOUT_S)
        except (RoutingError, ArithmeticError, TimeoutError) as error:
            raise NotReady(str(error) or "the probe takes too long") from error

    def reconfigure(self, user_config: dict[str, int]) -> None:
        """Called by Serve at the start and whenever the number of threads changes."""
        torch.set_num_threads(user_config["num_threads"])

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            EngineStopped: a thread of this router has died.
        """
        if not (self._thread.is_alive() and self._follower.is_alive):
            raise EngineStopped("a thread of the router has died")

    def __del__(self) -> None:
        """Called by Serve when the router is to go, after its requests have ended."""
        self._engine.stop()
        self._thread.join(STOP_TIMEOUT_S)
        self._follower.stop()
        self._postman.close()
        if self._remote is not None:
            self._remote.close()

    def _remote_experts(self, config: ClusterConfig, checkpoint: Checkpoint) -> RemoteExperts:
        """Experts of the hosts that the Placement names."""
        follower = self._follower
        connect = _connector(
            lambda: Identity(self._router_id, checkpoint.digest, config.dtype, follower.key),
            config.link,
            self._place.node_id,
        )
        return RemoteExperts(LinkPool(follower, connect), config.patience)

    def _describe(self) -> RouterInfo:
        stats = self._engine.stats()
        return RouterInfo(
            router_id=self._router_id,
            node_id=self._place.node_id,
            node_ip=self._place.node_ip,
            pid=self._place.pid,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_tokens_used=stats.kv_tokens_used,
            kv_tokens=stats.kv_tokens,
            num_lost_hosts=self._remote.counters.lost_hosts if self._remote else 0,
            num_resent=self._remote.counters.resent if self._remote else 0,
        )


def _local_experts(config: ClusterConfig, checkpoint: Checkpoint) -> LocalExperts:
    shard = ExpertShard()
    ids = range(checkpoint.config.num_experts)
    for expert_id, networks in load_experts(
        checkpoint, ids, config.dtype, config.device, config.tile_rows
    ):
        shard.add(expert_id, networks)
    return LocalExperts(shard.compute_rows)


def _connector(
    identity: Callable[[], Identity], link: LinkKind, node_id: str
) -> Callable[[HostView], SocketLink]:
    def connect(host: HostView) -> SocketLink:
        address = choose_address(host.addresses, host.node_id == node_id, link)
        return SocketLink(address, identity(), CONNECT_TIMEOUT_S)

    return connect


def _wait_until_covered(follower: PlacementFollower, num_experts: int) -> None:
    deadline_s = time.monotonic() + PLACEMENT_PATIENCE_S
    view = follower.view()
    while not view.covers(num_experts):
        if time.monotonic() > deadline_s:
            raise NotReady(f"no host serves some of the {num_experts} experts")
        view = follower.wait_newer(view.version, timeout_s=1.0)
