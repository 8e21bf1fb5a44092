"""Requests to the tagging service: bodies within memory, clients that hang up, ids, the end."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse
from starlette.types import Message, Scope

from workers.serving import bodies as serving_bodies
from workers.serving import http_server as serving_http
from workers.serving.bodies import Bodies
from workers.serving.http_server import http_server
from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.pace import Pace
from workers.serving.threads import Threads
from workers.serving.traffic import Traffic

LIMITS = Limits(request_bytes=100, all_bytes=250, slowest_bytes_s=50, receive_seconds=30)


class Client:
    """A request that is under way, until its body comes or it hangs up."""

    def __init__(
        self,
        traffic: Traffic,
        path: str = "/tag",
        length: int | None = 100,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.sentence = b""
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        given = (headers or {}) | (
            {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
        )
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        self.task = asyncio.create_task(traffic(scope, self._messages.get, self._sent))

    async def _sent(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.sentence += message.get("body", b"")
        self.headers |= {
            name.decode(): value.decode() for name, value in message.get("headers", [])
        }

    def say(self, kind: str = "http.request", body: bytes = b"x", more: bool = False) -> None:
        self._messages.put_nowait({"type": kind, "body": body, "more_body": more})


def service(
    limits: Limits = LIMITS, metrics: Metrics | None = None, hold: asyncio.Event | None = None
) -> Traffic:
    """Answers with a body's size; `hold`: when it may."""
    app, bodies = FastAPI(), Bodies(limits)

    @app.post("/tag")
    async def tag(request: Request) -> dict[str, int]:
        async with bodies.admitted(request, limits.request_bytes) as body:
            content = await body.read(Request.body)
            if hold:
                await hold.wait()
        return {"bytes": len(content)}

    @app.get("/health/live")
    @app.post("/other")
    async def other() -> dict[str, str]:
        return {}

    @app.post("/broken")
    async def broken() -> None:
        raise RuntimeError("first line\n  of a traceback")

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "internal"}, 500)

    return Traffic(app, metrics or Metrics())


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def counts(metrics: Metrics) -> dict[str, float]:
    found = re.findall(
        r'^datafree_requests_total{.*status="(\d+)"} (.*)$', metrics.text().decode(), re.M
    )
    return {status: float(count) for status, count in found}


def test_bodies_are_refused_unread_when_those_under_way_fill_the_memory() -> None:
    async def scenario() -> None:
        traffic = service()
        first, second = Client(traffic), Client(traffic, length=None)  # as long as it may be
        await settle()
        third, other = Client(traffic), Client(traffic, path="/other")
        await settle()
        assert third.status == 429
        assert other.status == 200  # nobody who sends no images is refused
        assert b"may hold at most 0.00025 MB; retry in 1 s" in third.sentence
        assert third.headers["retry-after"] == "1"
        assert third.headers["connection"] == "close"
        assert not third.task.done()  # the rest of its body is thrown away, for a while
        third.say()
        await third.task
        small = Client(traffic, length=50)
        first.say()
        await first.task
        again = Client(traffic)
        for client in (second, small, again):
            client.say()
            await client.task
        assert {client.status for client in (first, second, small, again)} == {200}

    run(scenario)


def test_a_body_holds_its_room_until_the_answer_and_an_unknown_length_only_what_came() -> None:
    async def scenario() -> None:
        hold = asyncio.Event()
        traffic = service(hold=hold)
        unknown, known = Client(traffic, length=None), Client(traffic, length=100)
        await settle()
        for client in (unknown, known):
            client.say(body=bytes(40))
        await settle()
        # 80 bytes are held; 100 would not fit beside 100 that were reserved.
        more = Client(traffic, length=100)
        await settle()
        assert more.status == 0
        refused = Client(traffic, length=100)
        await settle()
        assert refused.status == 429
        refused.say()
        more.say()
        hold.set()
        for client in (unknown, known, more):
            await client.task
            assert client.status == 200

    run(scenario)


def test_slow_senders_give_their_room_up_and_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_bodies, "_GRACE_S", 0.05)

    async def scenario() -> None:
        traffic = service()
        slow = [Client(traffic), Client(traffic, length=None)]
        await settle()
        for client in slow:
            client.say(more=True)
        await asyncio.sleep(0.1)
        quick = Client(traffic)
        await settle()
        quick.say(body=bytes(100))
        await quick.task
        assert quick.status == 200
        # One of them was enough; it is told why, and the other may go on.
        evicted, spared = sorted(slow, key=lambda client: -client.status)
        assert evicted.status == 408
        assert b"slower than 0.05 kB/s while others had no room" in evicted.sentence
        spared.say(body=bytes(9))
        await spared.task
        assert spared.status == 200
        late = Client(service(LIMITS.model_copy(update={"receive_seconds": 0.05})))
        late.say(more=True)
        while not late.status:
            await asyncio.sleep(0.01)
        assert late.status == 408
        assert b"not received within 0.05 s" in late.sentence

    run(scenario)


def test_too_long_bodies_are_refused_before_they_come_or_while_they_come() -> None:
    async def scenario() -> None:
        traffic = service()
        declared, chunked = Client(traffic, length=101), Client(traffic, length=None)
        await settle()
        assert declared.status == 413
        chunked.say(body=bytes(101), more=True)
        await settle()
        assert chunked.status == 413

    run(scenario)


def test_a_client_that_hangs_up_ends_its_request_and_does_not_count_as_a_failure() -> None:
    metrics = Metrics()

    async def scenario() -> None:
        hold = asyncio.Event()
        traffic = service(metrics=metrics, hold=hold)
        reading, waiting, patient = (Client(traffic, length=10) for _ in range(3))
        await settle()
        reading.say("http.disconnect")
        waiting.say()
        waiting.say("http.disconnect")
        patient.say()
        await asyncio.wait([reading.task, waiting.task])
        hold.set()
        await patient.task

    run(scenario)
    assert counts(metrics) == {"499": 2, "200": 1}


def test_draining_waits_for_requests_under_way_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        traffic = service()
        under_way = Client(traffic)
        await settle()
        end = asyncio.create_task(traffic.drain())
        await settle()
        late, ready, live = (
            Client(traffic, path=path, length=0) for path in ("/tag", "/health", "/health/live")
        )
        await settle()
        assert (late.status, ready.status) == (503, 503)
        assert live.status == 405  # asked of the app
        assert not end.done()
        under_way.say()
        await asyncio.wait_for(end, 30)
        assert under_way.status == 200

    run(scenario)


def test_each_request_has_an_id_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        traffic = service()
        for given, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("", False)):
            client = Client(traffic, path="/other", length=0, headers={"x-request-id": given})
            await client.task
            answered = client.headers["x-request-id"]
            assert (answered == given) == kept
            assert re.fullmatch(r"[\w.-]{1,64}", answered)
        broken = Client(traffic, path="/broken", length=0)
        await broken.task
        assert broken.status == 500
        assert b"traceback" not in broken.sentence

    with caplog.at_level(logging.INFO, "workers.serving"):
        run(scenario)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert lines[0].startswith("POST /other 200 0.0")
    assert "RuntimeError: first line" in lines[4]
    assert "traceback" not in caplog.text


def test_the_time_to_retry_follows_the_queue() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.seconds_for(100) == 1  # nothing is known
    for second in range(10):
        now[0] = float(second)
        pace.finished(10)
    now[0] = 10.0
    assert pace.seconds_for(10) == 1
    assert pace.seconds_for(95) == 10
    assert pace.seconds_for(10**6) == 60
    now[0] = 1000.0
    assert pace.seconds_for(95) == 1  # long ago


def test_a_decode_that_nobody_waits_for_counts_until_it_ends() -> None:
    async def scenario() -> None:
        threads, go = Threads(1, 2), threading.Event()
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def decode() -> None:
            loop.call_soon_threadsafe(begun.set)
            go.wait(30)

        ran = []
        first = asyncio.create_task(threads.run(decode))
        await begun.wait()
        second = asyncio.create_task(threads.run(lambda: ran.append(2)))
        await settle()
        assert threads.full()
        second.cancel()  # has not begun
        await settle()
        assert not threads.full()
        first.cancel()  # goes on in its thread
        third = asyncio.create_task(threads.run(lambda: ran.append(3)))
        await settle()
        assert threads.full()
        go.set()
        await third
        await settle()
        assert not threads.full()
        assert ran == [3]

    run(scenario)


def test_connections_without_a_whole_request_head_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_http, "_HEAD_S", 0.2)
    whole = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with http_server(service(), listening, LIMITS):
            for begin in (b"", b"GET / HTTP/1.1\r\nX: ", whole):
                with socket.create_connection(listening.getsockname(), timeout=60) as client:
                    client.sendall(begin)
                    if begin == whole:
                        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
                        client.sendall(b"GET /")  # and then nothing
                    assert client.recv(1000) == b""
