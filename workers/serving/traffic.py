"""The requests under way in the tagging service: admitted, measured, and let end before it does."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.serving.limits import Limits
from workers.serving.metrics import Measures
from workers.serving.requests import declared_bytes

_WITH_BODIES = ("/tag", "/regions")
_HUNG_UP = 499  # as nginx has it: the client did not wait for the answer
_LOOK_EACH_S = 0.05


class Traffic:
    """An ASGI app that lets requests through to another one."""

    def __init__(self, app: ASGIApp, limits: Limits, measures: Measures) -> None:
        self._app, self._limits, self._measures = app, limits, measures
        self._requests = self._bytes = 0
        self._ending = False

    async def drain(self) -> None:
        """Refuse requests from now on, and return when those under way are answered."""
        self._ending = True
        while self._requests:
            await asyncio.sleep(_LOOK_EACH_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, hung_up = time.monotonic(), _HUNG_UP, False
        body_bytes = self._body_bytes(scope)

        async def received() -> Message:
            nonlocal hung_up
            message = await receive()
            hung_up = hung_up or message["type"] == "http.disconnect"
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and not hung_up:
                status = message["status"]
            await send(message)

        try:
            with suppress(ClientDisconnect):
                if refusal := self._refusal(body_bytes):
                    await refusal(scope, received, sent)
                    return
                self._requests += 1
                self._bytes += body_bytes
                try:
                    await self._app(scope, received, sent)
                finally:
                    self._requests -= 1
                    self._bytes -= body_bytes
        finally:
            if (path := scope["path"]) in _WITH_BODIES:
                self._measures.requests.labels(path, status).inc()
                self._measures.seconds.labels(path).observe(time.monotonic() - begun)

    def _body_bytes(self, scope: Scope) -> int:
        """The most that reading a request's body can take; it is refused when it is longer."""
        if scope["path"] not in _WITH_BODIES:
            return 0
        declared = declared_bytes(Headers(scope=scope))
        most = self._limits.request_bytes
        return most if declared is None else min(declared, most)

    def _refusal(self, body_bytes: int) -> JSONResponse | None:
        """Why a request is not let through."""
        if self._ending:
            sentence = "the service is ending"
            return JSONResponse({"status": "ending", "error": sentence}, 503, {"Retry-After": "5"})
        if body_bytes and self._bytes + body_bytes > self._limits.all_bytes:
            sentence = "too many requests are under way already; try again"
            return JSONResponse({"error": sentence}, 429, {"Retry-After": "1"})
        return None
