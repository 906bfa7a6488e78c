"""The one table from what can go wrong to an HTTP status and an OpenAI error body.

ApiError                     something in the HTTP request itself
    InvalidRequest           the body or one field of it is wrong; names the field
    ModelNotFound            another model was asked for
    BodyTooLarge             the body is longer than is read
    UnsupportedBody          the body is not plain JSON

What is not in the table is a fault of ours: status 500, no detail, logged with the request id.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from cluster import errors as cluster_errors
from model import errors as model_errors
from routing import errors as routing_errors

logger = logging.getLogger(__name__)

MAX_PARAM_CHARS = 100
RETRY_AFTER_S = 1.0


class ApiError(Exception):
    """Root of this room's errors."""

    def __init__(self, message: str, param: str | None, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequest(ApiError):
    """The body or one field of it is wrong."""


class ModelNotFound(ApiError):
    """Another model was asked for."""


class BodyTooLarge(ApiError):
    """The body is longer than is read."""


class UnsupportedBody(ApiError):
    """The body is not plain JSON."""


class ErrorDetail(TypedDict):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """OpenAI's error body."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one class of errors is answered.

    Attributes:
        code: used unless the error carries its own.
        is_ours: the client did nothing wrong and cannot mend it: logged, and not explained.
        can_retry: the same request may succeed soon: the answer carries Retry-After.
    """

    status: int
    type: str
    code: str
    is_ours: bool = False
    can_retry: bool = False


INVALID = "invalid_request_error"
SERVER = "server_error"
INTERNAL = ErrorKind(500, SERVER, "internal_error", is_ours=True)
UNAVAILABLE = ErrorKind(503, SERVER, "not_ready", can_retry=True)

ERROR_TABLE: Mapping[type[Exception], ErrorKind] = {
    ApiError: INTERNAL,
    InvalidRequest: ErrorKind(400, INVALID, "invalid_value"),
    ModelNotFound: ErrorKind(404, INVALID, "model_not_found"),
    BodyTooLarge: ErrorKind(413, INVALID, "request_too_large"),
    UnsupportedBody: ErrorKind(415, INVALID, "unsupported_media_type"),
    model_errors.ModelError: INTERNAL,
    model_errors.ConfigError: INTERNAL,
    model_errors.CheckpointError: INTERNAL,
    model_errors.MissingTensor: INTERNAL,
    model_errors.UnexpectedTensor: INTERNAL,
    model_errors.ShapeMismatch: INTERNAL,
    model_errors.TokenizerError: INTERNAL,
    model_errors.PromptError: ErrorKind(400, INVALID, "invalid_prompt"),
    model_errors.SamplingError: ErrorKind(400, INVALID, "invalid_value"),
    cluster_errors.ClusterError: INTERNAL,
    cluster_errors.EngineBusy: ErrorKind(503, SERVER, "overloaded", can_retry=True),
    cluster_errors.RequestTooLarge: ErrorKind(400, INVALID, "context_length_exceeded"),
    cluster_errors.NotReady: UNAVAILABLE,
    cluster_errors.RequestFailed: INTERNAL,
    cluster_errors.EngineStopped: ErrorKind(503, SERVER, "engine_stopped", can_retry=True),
    routing_errors.RoutingError: INTERNAL,
    routing_errors.PlacementError: INTERNAL,
    routing_errors.FrameError: INTERNAL,
    routing_errors.LinkError: INTERNAL,
    routing_errors.LinkClosed: INTERNAL,
    routing_errors.LinkTimeout: INTERNAL,
    routing_errors.HandshakeError: INTERNAL,
    routing_errors.ExpertFault: INTERNAL,
    routing_errors.ExpertUnavailable: ErrorKind(503, SERVER, "expert_unavailable", can_retry=True),
}

HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def kind_of(error: Exception) -> ErrorKind:
    """Find how an error is answered, by its class or the nearest base class in the table."""
    if isinstance(error, HTTPException):
        return ErrorKind(error.status_code, INVALID, HTTP_CODES.get(error.status_code, "http"))
    known = (ERROR_TABLE[base] for base in type(error).__mro__ if base in ERROR_TABLE)
    return next(known, INTERNAL)


def error_body(error: Exception, request_id: str) -> ErrorBody:
    """Write OpenAI's error body."""
    kind = kind_of(error)
    code = kind.code
    param: str | None = None
    if isinstance(error, ApiError | model_errors.PromptError):
        code, param = error.code, error.param
    elif isinstance(error, model_errors.SamplingError):
        param = error.field
    message = f"internal error; request id {request_id}" if kind.is_ours else _message(error)
    return {"error": {"message": message, "type": kind.type, "param": _short(param), "code": code}}


def error_response(error: Exception, request_id: str) -> Response:
    """Write the whole answer to a request that failed before its answer began."""
    kind = kind_of(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if kind.can_retry:
        headers["retry-after"] = str(max(1, round(getattr(error, "retry_after_s", RETRY_AFTER_S))))
    # ASCII only: the names of a client's fields may hold what UTF-8 cannot.
    content = json.dumps(error_body(error, request_id))
    return Response(content, kind.status, headers, media_type="application/json")


def log_if_ours(error: Exception, request_id: str) -> None:
    """Log a fault of ours, once, with its traceback; a client's mistake is not logged."""
    if kind_of(error).is_ours:
        logger.error("request_id=%s event=request_failed", request_id, exc_info=error)


def _message(error: Exception) -> str:
    return str(error.detail) if isinstance(error, HTTPException) else str(error)


def _short(param: str | None) -> str | None:
    return None if param is None else param[:MAX_PARAM_CHARS]
