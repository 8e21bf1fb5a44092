"""The bodies of all requests under way, within one budget of bytes.

A body's room is taken from `Content-Length` before any of it is read, and held until the request is
answered. A body of unknown length takes the most that it may have, until it is complete. Whoever
has no room is refused at once; but senders that are slower than `slowest_bytes_s`, or too slow to
fill their room within `receive_seconds`, give theirs up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from workers.serving.limits import Limits
from workers.serving.pace import Pace
from workers.serving.requests import declared_bytes, refuse, too_large

_GRACE_S = 1.0

Result = TypeVar("Result")


class Body:
    """A body that is admitted; `read` receives it."""

    def __init__(self, request: Request, most: int, room: int, limits: Limits) -> None:
        self._receive, self._most, self._limits = request.receive, most, limits
        self._request = Request(request.scope, self._received)
        self._begun, self._bytes = time.monotonic(), 0
        self._reading: asyncio.Timeout | None = None
        self._complete = self._evicted = False
        self._slowest = max(limits.slowest_bytes_s, room / limits.receive_seconds)
        self.room = room

    async def read(self, reader: Callable[[Request], Awaitable[Result]]) -> Result:
        """What `reader` makes of the request. Raises HTTPException: 408, 413."""
        try:
            async with asyncio.timeout(self._limits.receive_seconds) as self._reading:
                result = await reader(self._request)
        except TimeoutError:
            self._refuse_slow()
        finally:
            self._reading = None
        self.room = self._bytes
        return result

    def is_slow(self) -> bool:
        """Whether it still comes, and slower than it must when others need its room."""
        seconds = time.monotonic() - self._begun
        waits = self._reading and not self._complete and not self._evicted
        return bool(waits) and seconds > _GRACE_S and self._bytes < self._slowest * seconds

    def evict(self) -> None:
        """Give the room up: the sender is refused instead of being waited for."""
        assert self._reading is not None
        self.room, self._evicted = 0, True
        self._reading.reschedule(asyncio.get_running_loop().time())

    def _refuse_slow(self) -> NoReturn:
        if self._evicted:
            slowest = f"{self._slowest / 1000:.3g} kB/s"
            refuse(408, f"the request came slower than {slowest} while others had no room")
        refuse(408, f"the request was not received within {self._limits.receive_seconds:g} s")

    async def _received(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._bytes += len(message.get("body", b""))
        self.room = max(self.room, self._bytes)  # whatever was declared
        self._complete = not message.get("more_body", False)
        if self._bytes > self._most:
            refuse(413, too_large("the request", self._most))
        return message


class Bodies:
    """Admits bodies as long as there is room."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._pace = limits, Pace()
        self._under_way: set[Body] = set()

    @asynccontextmanager
    async def admitted(self, request: Request, most: int) -> AsyncIterator[Body]:
        """Room for the request's body, of at most `most` bytes, until the block ends.

        Raises HTTPException: 400, 413, 429.
        """
        declared = declared_bytes(request.headers)
        if declared is not None and declared > most:
            refuse(413, too_large("the request", most))
        room = most if declared is None else declared
        self._make(room)
        body = Body(request, most, room, self._limits)
        self._under_way.add(body)
        try:
            yield body
        finally:
            self._under_way.remove(body)
            self._pace.finished(body.room)

    def _make(self, room: int) -> None:
        """Evict slow senders until there is room. Raises HTTPException: 429."""
        missing = sum(body.room for body in self._under_way) + room - self._limits.all_bytes
        if missing <= 0:
            return
        slow = [body for body in self._under_way if body.is_slow()]
        if sum(body.room for body in slow) < missing:
            seconds = self._pace.seconds_for(missing)
            most = f"{self._limits.all_bytes / 1e6:g} MB"
            refuse(
                429, f"requests under way may hold at most {most}; retry in {seconds} s", seconds
            )
        for body in sorted(slow, key=lambda body: -body.room):
            if missing <= 0:
                return
            missing -= body.room
            body.evict()
