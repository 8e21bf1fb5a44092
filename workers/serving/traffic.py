"""Requests to the tagging service: admitted, counted, and finished before the service stops."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.requests import declared_bytes

_WITH_BODIES = ("/tag", "/regions")
_HUNG_UP = 499  # nginx's status for a client that closed the connection early
_POLL_S = 0.05


class Traffic:
    """An ASGI middleware in front of the app."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._requests = self._bytes = 0
        self._draining = False

    async def drain(self) -> None:
        """Refuse new requests, and return when those under way are answered."""
        self._draining = True
        while self._requests:
            await asyncio.sleep(_POLL_S)

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
                self._metrics.requests.labels(path, status).inc()
                self._metrics.seconds.labels(path).observe(time.monotonic() - begun)

    def _body_bytes(self, scope: Scope) -> int:
        """Upper bound of a body's size; `read_images` refuses a longer one."""
        if scope["path"] not in _WITH_BODIES:
            return 0
        declared = declared_bytes(Headers(scope=scope))
        most = self._limits.request_bytes
        return most if declared is None else min(declared, most)

    def _refusal(self, body_bytes: int) -> JSONResponse | None:
        """The answer to a request that is not admitted."""
        if self._draining:
            error = {"status": "ending", "error": "the service is shutting down"}
            return JSONResponse(error, 503, {"Retry-After": "5"})
        if body_bytes and self._bytes + body_bytes > self._limits.all_bytes:
            most = f"{self._limits.all_bytes / 1e6:g} MB"
            error = {"error": f"requests under way may hold at most {most}; retry in 1 s"}
            return JSONResponse(error, 429, {"Retry-After": "1"})
        return None
