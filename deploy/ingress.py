"""The Ingress deployment: the HTTP API, and the same generation for Python handles."""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.handle import Piece
from cluster.mailbox import Mailbox
from cluster.router_client import RouterClient
from cluster.whereabouts import whereabouts
from deploy.api.body import check_request
from deploy.api.errors import ApiError
from deploy.api.generation import stream_choices
from deploy.api.prompts import Choice, chat_choices, completion_choices
from deploy.api.routes import create_app
from deploy.api.schemas import ChatRequest, CompletionRequest
from deploy.api.service import ApiService
from model.config import ModelConfig
from model.errors import ModelError
from model.tokenizer import load_tokenizer
from routing.expert_server import local_addresses


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
        place = whereabouts()
        mailbox = Mailbox(place.node_id, local_addresses(place.node_ip))
        self._service = ApiService(
            backend=RouterClient(routers, mailbox),
            tokenizer=tokenizer,
            model_name=model_name,
            config=config,
            created=int(time.time()),
            cache_tokens=kv_tokens,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service)

    async def generate(self, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """One choice of the HTTP API's `body`, as it comes; for `cluster.handle`.

        Raises:
            ValueError: the body is wrong; names the field.
        """
        try:
            choices = await self._choices({"model": self._service.model_name, **body})
        except (ApiError, ModelError) as error:
            raise ValueError(str(error)) from None
        deltas = stream_choices(self._service, choices[:1], secrets.token_hex(16))
        async with aclosing(deltas):
            async for delta in deltas:
                token_ids = tuple(event.token_id for event in delta.events)
                yield Piece(delta.text, token_ids, delta.finish_reason)

    async def status(self) -> dict[str, object]:
        """What runs where; see `Placement.status`."""
        status: dict[str, object] = await self._placement.status.remote()
        return {"model": self._service.model_name, **status}

    async def _choices(self, body: dict[str, Any]) -> list[Choice]:
        if "messages" in body:
            return await chat_choices(self._service, check_request(body, ChatRequest))
        return await completion_choices(self._service, check_request(body, CompletionRequest))
