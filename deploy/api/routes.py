"""The endpoints, thin: parse, ask for tokens, shape the answer."""

import hashlib
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from deploy.api.answer_shape import AnswerOptions, AnswerShape
from deploy.api.answers import (
    ChatResponse,
    Envelope,
    ModelCard,
    ModelList,
    TextResponse,
    model_card,
)
from deploy.api.body import read_request
from deploy.api.chat_shape import ChatShape
from deploy.api.errors import ErrorBody, error_response
from deploy.api.generation import collect, stream_choices
from deploy.api.middleware import RequestBorder
from deploy.api.prompts import Choice, chat_choices, check_model, completion_choices
from deploy.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from deploy.api.service import ApiService
from deploy.api.streaming import EventStream, unless_disconnected
from deploy.api.text_shape import TextShape

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request was refused"},
    "5XX": {"model": ErrorBody, "description": "The request could not be served"},
}


def create_app(service: ApiService) -> FastAPI:
    """Make the HTTP API of one served model."""
    app = FastAPI(
        title="mixray",
        redirect_slashes=False,
        middleware=[Middleware(RequestBorder)],
        exception_handlers={HTTPException: _answer_http_error},
    )
    _add_generation(app, service)
    _add_models(app, service)
    _add_health(app, service)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_generation(app: FastAPI, service: ApiService) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": ChatResponse}, **ERRORS},
        openapi_extra=_body_of("ChatRequest"),
    )
    async def chat_completions(request: Request) -> Response:
        body = await read_request(request, ChatRequest)
        choices = await chat_choices(service, body)
        envelope = _envelope(service, request, "chatcmpl", "chat.completion")
        shape = ChatShape(envelope, choices, _options(body), service.tokenizer)
        return await _answer(service, request, body, choices, shape)

    @app.post(
        "/v1/completions",
        response_model=None,
        responses={200: {"model": TextResponse}, **ERRORS},
        openapi_extra=_body_of("CompletionRequest"),
    )
    async def completions(request: Request) -> Response:
        body = await read_request(request, CompletionRequest)
        choices = await completion_choices(service, body)
        envelope = _envelope(service, request, "cmpl", "text_completion")
        shape = TextShape(envelope, choices, _options(body), service.tokenizer)
        return await _answer(service, request, body, choices, shape)


def _add_models(app: FastAPI, service: ApiService) -> None:
    card = model_card(service.model_name, service.created, service.context_tokens)

    @app.get("/v1/models", responses=ERRORS)
    async def list_models() -> ModelList:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model_id:path}", responses=ERRORS)
    async def retrieve_model(model_id: str) -> ModelCard:
        check_model(service, model_id)
        return card


def _add_health(app: FastAPI, service: ApiService) -> None:
    @app.get("/health", responses=ERRORS)
    async def health() -> dict[str, str]:
        """Say that this process lives."""
        return {"status": "ok"}

    @app.get("/ready", responses=ERRORS)
    async def ready() -> dict[str, str]:
        """Say that a token can be served."""
        await service.backend.check_ready()
        return {"status": "ready"}


async def _answer(
    service: ApiService,
    request: Request,
    body: GenerationRequest,
    choices: list[Choice],
    shape: AnswerShape,
) -> Response:
    request_id = request.state.request_id
    deltas = stream_choices(service, choices, request_id)
    if body.stream:
        return EventStream(shape, deltas, body.include_usage, request_id)
    answers = await unless_disconnected(request.receive, collect(deltas, len(choices)))
    return JSONResponse(shape.response(answers))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.state.request_id)


def _options(body: GenerationRequest) -> AnswerOptions:
    return AnswerOptions(
        num_per_prompt=body.n,
        include_usage=body.include_usage,
        return_token_ids=body.return_token_ids,
    )


def _envelope(service: ApiService, request: Request, prefix: str, kind: str) -> Envelope:
    return {
        "id": f"{prefix}-{request.state.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": _fingerprint(service),
    }


def _fingerprint(service: ApiService) -> str:
    """Give a name that changes when the same seed may give other tokens."""
    facts = f"{service.model_name} {service.config}"
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]


def _body_of(schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Describe the API. Bodies are read by hand, so their schemas are added by hand."""
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, definitions = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    description["components"]["schemas"].update(definitions["$defs"])
    return description
