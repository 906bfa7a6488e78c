"""Which process this is, in Ray's words."""

import os
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """An actor's own place in the cluster."""

    actor_id: str
    node_id: str
    node_ip: str
    pid: int


def whereabouts() -> Whereabouts:
    """Where the calling actor runs; only to be called inside an actor."""
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    # The address that Ray itself uses, which a machine with several need not guess.
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    node_ip = next(node["NodeManagerAddress"] for node in nodes if node["NodeID"] == node_id)
    return Whereabouts(context.get_actor_id() or "", node_id, node_ip, os.getpid())
