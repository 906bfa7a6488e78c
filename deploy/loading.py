"""Showing how far the expert hosts are with loading, while the application comes up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from rich.status import Status

from cluster.handle import APP_NAME

LOOK_EVERY_S = 0.5
GIB = 2**30


@contextmanager
def showing_loading(status: Status, model_name: str) -> Iterator[None]:
    """Keep `status` up to date until the block ends."""
    is_over = threading.Event()
    looker = threading.Thread(target=_look, args=(status, model_name, is_over), daemon=True)
    looker.start()
    try:
        yield
    finally:
        is_over.set()
        looker.join()


def describe_loading(hosts: list[dict[str, Any]]) -> str:
    """One line about the hosts that have joined, from `Placement.status`."""
    experts = {expert_id for host in hosts for expert_id in host["experts"]}
    loaded = sum(host["loaded_bytes"] for host in hosts) / GIB
    wanted = sum(host["wanted_bytes"] for host in hosts) / GIB
    return f"{len(hosts)} hosts, {len(experts)} experts, {loaded:.2f} of {wanted:.2f} GiB"


def _look(status: Status, model_name: str, is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_EVERY_S):
        try:
            placement = serve.get_deployment_handle("Placement", APP_NAME)
            hosts = placement.status.remote().result(timeout_s=LOOK_EVERY_S)["expert_hosts"]
        except (RayError, RayServeException, TimeoutError):
            continue  # it is not up yet
        status.update(f"loading {model_name}: {describe_loading(hosts)}")
