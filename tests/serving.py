"""One Ray cluster with Serve for all tests that need one, and applications on it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import requests
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.handle import APP_NAME


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def ray_with_serve() -> Iterator[str]:
    """A cluster of this process's own, on loopback; gives the URL of the HTTP server."""
    port = free_port()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()


def deploy(model: Path, *, expert_hosts: int, routers: int = 1, **settings: Any) -> None:
    """Deploy as `serve deploy` does; other counts alone change the application in place.

    Returns when the application runs and has so many replicas.
    """
    counts = {"ExpertHost": expert_hosts, "Router": routers}
    application = {
        "name": APP_NAME,
        "route_prefix": "/",
        "import_path": "deploy.app:build",
        "args": {"model": str(model), **settings},
        "deployments": [{"name": n, "num_replicas": count} for n, count in counts.items()],
    }
    schema = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(schema)
    wait_until(lambda: _replicas() == counts, 120)


def _replicas() -> dict[str, int]:
    """Running replicas of hosts and routers; nothing while some deployment is not healthy."""
    application = serve.status().applications.get(APP_NAME)
    if application is None or application.status != "RUNNING":
        return {}
    deployments = application.deployments
    return {
        name: deployments[name].replica_states.get("RUNNING", 0)
        for name in ("ExpertHost", "Router")
    }


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.1)


def stream_ids(
    url: str, progress: Callable[[int], None] = lambda num_tokens: None, **body: Any
) -> tuple[list[int], bool]:
    """Token ids of a streamed completion, and whether it ended with `[DONE]`."""
    token_ids: list[int] = []
    with requests.post(
        f"{url}/v1/completions",
        json={"stream": True, "return_token_ids": True, **body},
        timeout=120,
        stream=True,
    ) as response:
        assert response.ok, response.text
        for line in response.iter_lines(chunk_size=1):
            if line == b"data: [DONE]":
                return token_ids, True
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    token_ids.extend(choice["token_ids"])
                    progress(len(token_ids))
    return token_ids, False
