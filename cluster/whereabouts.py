"""Which process this is, in Ray's words."""

import os
from dataclasses import dataclass

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
    return Whereabouts(
        context.get_actor_id() or "",
        context.get_node_id(),
        str(ray.util.get_node_ip_address()),  # type: ignore[no-untyped-call]
        os.getpid(),
    )
