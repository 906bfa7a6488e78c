"""The Ingress deployment: the HTTP API, and the same generation for Python handles."""

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.router_client import RouterClient
from deploy.api.routes import create_app
from deploy.api.service import ApiService
from model.config import ModelConfig
from model.tokenizer import load_tokenizer


@serve.ingress()
class Ingress:
    """Stateless: validates, tokenises, asks the routers, detokenises."""

    def __init__(
        self,
        model_dir: str,
        model_name: str,
        config: ModelConfig,
        kv_tokens: int,
        routers: DeploymentHandle[Any],
        placement: DeploymentHandle[Any],
        expert_hosts: DeploymentHandle[Any] | None,
    ) -> None:
        """`expert_hosts` is never called; taking it makes the hosts part of the application."""
        tokenizer = load_tokenizer(Path(model_dir))
        tokenizer.check_fits(config.vocab_size)
        self._placement = placement
        self._service = ApiService(
            backend=RouterClient(routers),
            tokenizer=tokenizer,
            model_name=model_name,
            config=config,
            created=int(time.time()),
            cache_tokens=kv_tokens,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service)

    async def status(self) -> dict[str, object]:
        """What runs where; see `Placement.status`."""
        status: dict[str, object] = await self._placement.status.remote()
        return status
