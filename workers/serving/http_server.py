"""The HTTP server of the tagging service, in a thread of the process that began it.

Ray Serve's own proxy would hold every body in two processes before it could be refused, and read
the bodies of clients as fast as they send. Here a body stays with its sender until it has room.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from workers.failure import DescribedFailure
from workers.serving.limits import Limits
from workers.serving.traffic import one_line, request_id

_HEAD_S = 10.0
_KEEP_ALIVE_S = 75  # longer than proxies keep theirs, which would send into a closed connection
_BACKLOG = 512
_POLL_S = 0.01
_FULL = b'{"error": "the service has too many connections; retry in 5 s"}'
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)
_LOGGED = "workers.serving"


class _ImpatientProtocol(H11Protocol):
    """Closes connections that send no whole request head in time, which uvicorn waits for.

    Those above `most` are answered with 503 and closed before they send anything: uvicorn's own
    limit is on requests, and silent connections would use up the files of this process.
    """

    most: int
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_REFUSED)
            transport.close()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_timer()

    def _wait_for_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        self._timer = None
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.timeout_keep_alive_task is None:  # else uvicorn closes it
            self.transport.close()

    def _forget_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class HttpServer:
    """A server in a thread, until the block of `http_server` ends."""

    def __init__(self, server: uvicorn.Server, listening: socket.socket) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(listening,), name="http")

    def start(self) -> None:
        """Return once it serves. Raises DescribedFailure if it ends before."""
        self._thread.start()
        while not self._server.started:
            self.check()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve([listening])

        try:
            with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
                runner.run(serve())
        except BaseException as error:  # of any kind: `check` raises it in the other thread
            self._failure = error

    def wait_for(self, work: Any, seconds: float) -> None:
        """Run a coroutine in the server's loop. Raises TimeoutError."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def check(self) -> None:
        """Raise DescribedFailure if it has ended by itself."""
        if not self._thread.is_alive():  # uvicorn ends without an error if the app does not start
            why = one_line(self._failure) if self._failure else "the app did not start or has ended"
            raise DescribedFailure(f"the HTTP server ended: {why}")


@contextmanager
def http_server(app: ASGIApp, listening: socket.socket, limits: Limits) -> Iterator[HttpServer]:
    """Serve the app at a bound socket until the block ends. Raises DescribedFailure."""
    _allow_connections(limits.connections)

    class Protocol(_ImpatientProtocol):
        most = limits.connections

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = HttpServer(uvicorn.Server(config), listening)
    with _logged():
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def _logged() -> Iterator[None]:
    """Write the log of the service to standard error, each line with its request's id."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(request)s] %(message)s"))

    def named(record: logging.LogRecord) -> bool:
        record.request = request_id.get()
        return True

    handler.addFilter(named)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not each malformed request
    log = logging.getLogger(_LOGGED)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def _allow_connections(count: int) -> None:
    """Let this process have as many open files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _BACKLOG + 512  # those that are refused in one turn of the loop, and Ray's
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
