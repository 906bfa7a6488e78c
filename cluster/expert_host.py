"""The ExpertHost deployment: experts on their own device, behind sockets of their own.

A host joins the Placement, is told which experts to hold, loads them one after another and serves
them. Its state is only a cache of the checkpoint: it may die at any moment.
"""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.config import ClusterConfig
from cluster.placement_book import HostInfo, HostReport
from cluster.whereabouts import whereabouts
from model.checkpoint.load import open_checkpoint
from model.experts import ExpertShard, load_experts
from routing.expert_server import ExpertServer, local_addresses
from routing.expert_service import ExpertService, ServiceSpec
from routing.handshake import Identity

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_S = 10.0
REJOIN_AFTER_S = 0.5
BEAT_PERIOD_S = 1.0


class ExpertHost:
    """Mutable state: the shard, which the following thread fills and the server thread reads."""

    def __init__(self, config: ClusterConfig, placement: DeploymentHandle[Any]) -> None:
        self._config = config
        self._placement = placement
        self._checkpoint = open_checkpoint(Path(config.model_dir))
        self._shard = ExpertShard()
        self._key: bytes | None = None
        self._loading = (0, 0)
        self._loader = ThreadPoolExecutor(1, "load")
        self._load_under_way = self._loader.submit(self._load, frozenset())
        self._info, self._service, self._server = self._listen()
        self._is_stopping = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="placement", daemon=True)
        self._follower.start()

    def reconfigure(self, user_config: dict[str, int]) -> None:
        """Called by Serve at the start and whenever the number of threads changes."""
        torch.set_num_threads(user_config["num_threads"])

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: a thread of this host has died.
        """
        if not (self._server.is_alive and self._follower.is_alive()):
            raise RuntimeError("a thread of the expert host has died")

    def __del__(self) -> None:
        """Called by Serve when the host is to go: hand the experts over, then stop."""
        self._leave()
        self._is_stopping.set()
        self._server.stop()

    def _listen(self) -> tuple[HostInfo, ExpertService, ExpertServer]:
        config, model = self._config, self._checkpoint.config
        place = whereabouts()
        host_id = f"host-{place.actor_id[:8]}"
        spec = ServiceSpec(
            compute_rows=torch.inference_mode()(self._shard.compute_rows),
            expert_ids=lambda: self._shard.expert_ids,
            num_layers=model.num_layers,
            dim=model.dim,
            dtype=config.dtype,
            device=torch.device(config.device),
        )
        service = ExpertService(spec, time.monotonic)
        # The key is known once the host has joined; until then no router knows the address.
        identity = Identity(host_id, self._checkpoint.digest, config.dtype, os.urandom(32))
        server = ExpertServer(service, identity, local_addresses(place.node_ip))
        server.start()
        info = HostInfo(
            host_id=host_id,
            node_id=place.node_id,
            node_ip=place.node_ip,
            pid=place.pid,
            addresses=server.addresses,
            num_slots=config.slots_per_host,
        )
        return info, service, server

    def _follow(self) -> None:
        """Join, then hold what the Placement says; start over whenever it does not answer."""
        while not self._is_stopping.is_set():
            try:
                self._join()
                self._hold_what_is_assigned()
            except (RayError, RayServeException, TimeoutError) as error:
                logger.warning("host=%s placement: %s", self._info.host_id, type(error).__name__)
            self._is_stopping.wait(REJOIN_AFTER_S)

    def _join(self) -> None:
        held = frozenset(self._shard.expert_ids)
        response = self._placement.join.remote(self._info, held, self._key)
        self._key = response.result(timeout_s=PLACEMENT_TIMEOUT_S)
        self._server.identity = replace(self._server.identity, key=self._key)

    def _leave(self) -> None:
        """Serve on until other hosts hold every expert of this one, for a while at most."""
        deadline_s = time.monotonic() + self._config.leave_timeout_s
        self._placement.leave.remote(self._info.host_id)
        while self._shard.expert_ids and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def _hold_what_is_assigned(self) -> None:
        """Beat, load and drop, until the Placement no longer knows this host.

        Loading may take minutes, so it has a thread of its own while this one goes on beating.
        """
        while not self._is_stopping.is_set():
            held = frozenset(self._shard.expert_ids)
            response = self._placement.beat.remote(self._info.host_id, held, self._report())
            assigned = response.result(timeout_s=PLACEMENT_TIMEOUT_S)
            if assigned is None:
                return
            if self._load_under_way.done():
                self._load_under_way.result()
                self._shard.remove(held - assigned)
                self._load_under_way = self._loader.submit(self._load, assigned - held)
            wait([self._load_under_way], timeout=BEAT_PERIOD_S)

    def _report(self) -> HostReport:
        loaded_bytes, wanted_bytes = self._loading
        return HostReport(
            rows_by_expert=dict(self._service.rows_by_expert),
            loaded_bytes=loaded_bytes,
            wanted_bytes=wanted_bytes,
        )

    def _note_loading(self, loaded_bytes: int, wanted_bytes: int) -> None:
        self._loading = (loaded_bytes, wanted_bytes)

    def _load(self, expert_ids: frozenset[int]) -> None:
        if not expert_ids:
            return
        config = self._config
        for expert_id, networks in load_experts(
            self._checkpoint,
            expert_ids,
            config.dtype,
            config.device,
            config.tile_rows,
            self._note_loading,
        ):
            self._shard.add(expert_id, networks)
        logger.info("host=%s loaded experts=%s", self._info.host_id, sorted(expert_ids))
