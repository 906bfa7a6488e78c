"""Around every request: its id, and the answer to whatever went wrong inside."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.api.errors import error_response, log_if_ours

HEADER = "x-request-id"
LABEL = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestBorder:
    """Gives each request an id of ours and turns its errors into answers.

    The client's `x-request-id` is a label: it is sent back, and never used to find a request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        label = Headers(scope=scope).get(HEADER, "")
        shown_id = label if LABEL.fullmatch(label) else request_id
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)[HEADER] = shown_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # Nobody is left to answer; what was running has been cancelled.
        except Exception as exc:
            if has_begun:
                raise
            log_if_ours(exc, request_id)
            await error_response(exc, request_id)(scope, receive, send_with_id)
