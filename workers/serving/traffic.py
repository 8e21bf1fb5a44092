"""Requests to the tagging service: named, logged, counted, and ended before the service is."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress
from contextvars import ContextVar

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.serving.metrics import Metrics

LIVE = "/health/live"

_COUNTED = ("/tag", "/regions")
_PROBES = ("/health", LIVE, "/health/ready", "/metrics")
_HUNG_UP = 499  # nginx's status for a client that closed the connection early
_POLL_S = 0.05
# How long the rest of a refused body is thrown away: a client that still sends reads the answer
# only afterwards, and an end before would look like a broken connection to it.
_LINGER_S = 5.0
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
_log = logging.getLogger(__name__)


class Traffic:
    """An ASGI middleware in front of the app."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._requests = 0
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
        request = _Request(scope, receive, send)
        request_id.set(request.id)
        begun = time.monotonic()
        self._requests += 1
        try:
            if self._draining and scope["path"] != LIVE:
                error = {"status": "ending", "error": "the service is shutting down"}
                ending = JSONResponse(error, 503, {"Retry-After": "5"})
                await ending(scope, request.receive, request.send)
            else:
                await request.answer(self._app)
        finally:
            self._requests -= 1
            seconds = time.monotonic() - begun
            if (path := scope["path"]) in _COUNTED:
                self._metrics.requests.labels(path, request.status).inc()
                self._metrics.seconds.labels(path).observe(seconds)
            if path not in _PROBES:
                raw = scope.get("raw_path", b"").decode("ascii", "replace")
                _log.info("%s %s %d %.3f s", scope["method"], raw, request.status, seconds)


class _Request:
    """A request under way. `status`: of its answer, or 499 while it has none."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = _HUNG_UP
        self._hung_up = self._begun = False
        self._received = asyncio.Event()
        self._no_body: Message | None = None
        if "transfer-encoding" not in headers and not int(headers.get("content-length") or 0):
            self._no_body = {"type": "http.request", "body": b"", "more_body": False}
            self._received.set()

    async def answer(self, app: ASGIApp) -> None:
        """Run the app, but not for a client that has hung up."""
        working = asyncio.ensure_future(self._run(app))
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnect:
            pass
        except Exception as error:  # the client has had its answer, or gets one below
            _log.error("%s", one_line(error))
            if not self._begun:
                failed = JSONResponse({"error": "internal error"}, 500)
                await failed(self._scope, self.receive, self.send)

    async def _watch(self) -> None:
        """Return when the client hangs up, after its body."""
        await self._received.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hung_up = True

    async def receive(self) -> Message:
        if self._no_body:  # comes once; what comes then is for `_watch`
            message, self._no_body = self._no_body, None
            return message
        message = await self._receive()
        self._hung_up = self._hung_up or message["type"] == "http.disconnect"
        if not message.get("more_body", False):
            self._received.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            if not self._hung_up:
                self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            if not self._received.is_set():
                headers["Connection"] = "close"
        elif not message.get("more_body", False) and not self._received.is_set():
            await self._send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while not self._received.is_set():
                        await self.receive()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)


def one_line(error: BaseException) -> str:
    """What went wrong, without tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
