"""Requests to the tagging service: bodies within memory, clients that hang up, ids, the end."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from ray.exceptions import RayActorError
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from workers.failure import DescribedFailure
from workers.serving import bodies as serving_bodies
from workers.serving import http_server as serving_http
from workers.serving import traffic as serving_traffic
from workers.serving.app import build_app
from workers.serving.bodies import Bodies
from workers.serving.http_server import http_server
from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.model import Refusal, TaggedImage
from workers.serving.pace import Pace
from workers.serving.threads import Threads
from workers.serving.traffic import Traffic

LIMITS = Limits(request_bytes=100, all_bytes=250, slowest_bytes_s=50, receive_seconds=30)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nobody is cut off, except where a test is about it."""
    monkeypatch.setattr(serving_bodies, "_GRACE_S", math.inf)
    monkeypatch.setattr(serving_traffic, "_LINGER_S", 60)


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
        size = (
            {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
        )
        given = size | (headers or {})
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


def test_senders_of_large_bodies_must_be_quick_enough_to_end_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_bodies, "_GRACE_S", 0.05)
    limits = LIMITS.model_copy(update={"slowest_bytes_s": 0})

    async def scenario() -> None:
        traffic = service(limits)
        small, large = Client(traffic, length=1), Client(traffic)
        other = Client(traffic)
        await settle()
        other.say(body=bytes(90), more=True)  # 100 in 30 s are 3.3 a second
        large.say(more=True)
        await asyncio.sleep(1)
        quick = Client(traffic)
        await settle()
        assert quick.status == 0
        assert large.status == 408
        assert b"slower than 0.00333 kB/s" in large.sentence
        for client in (small, other, quick):
            client.say()
            await client.task
            assert client.status == 200

    run(scenario)


def test_a_body_is_not_smaller_than_what_came_of_it() -> None:
    async def scenario() -> None:
        traffic = service(LIMITS.model_copy(update={"all_bytes": 100}))
        both = Client(traffic, length=None, headers={"content-length": "1"})
        await settle()
        assert both.status == 400
        assert b"either Content-Length or Transfer-Encoding" in both.sentence
        false = Client(traffic, length=1)  # as if the HTTP server did not compare
        await settle()
        false.say(body=bytes(80), more=True)
        await settle()
        late = Client(traffic, length=30)
        await settle()
        assert late.status == 429

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
        await end
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
    assert re.fullmatch(r"POST /other 200 \d+\.\d+ s", lines[0])
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
    pace.finished(0)
    assert pace.seconds_for(95) == 1  # nothing is known of those that have a size


def test_a_decode_that_nobody_waits_for_counts_until_it_ends() -> None:
    async def scenario() -> None:
        threads, go = Threads(1, 2), threading.Event()
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def decode() -> None:
            loop.call_soon_threadsafe(begun.set)
            go.wait(60)

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


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def connected(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname(), timeout=60)


def answer_of(client: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    said = b""
    with suppress(ConnectionError):
        while more := client.recv(1000):
            said += more
    return said


WHOLE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


def test_connections_without_a_whole_request_head_are_closed(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_http, "_HEAD_S", 60)
    with http_server(service(), listening, LIMITS):
        with connected(listening) as client:
            client.sendall(WHOLE)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            monkeypatch.setattr(serving_http, "_HEAD_S", 0.2)
            client.sendall(b"GET /")  # and then nothing
            answer_of(client)
        for begin in (b"", b"GET / HTTP/1.1\r\nX: "):
            with connected(listening) as client:
                with suppress(ConnectionError):  # already closed, if this machine is slow
                    client.sendall(begin)
                assert answer_of(client) == b""


def test_connections_above_the_limit_are_closed_before_they_send_anything(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_http, "_HEAD_S", 60)
    with http_server(service(), listening, Limits(connections=2)):
        with connected(listening) as first, connected(listening):
            for client in (connected(listening) for _ in range(3)):
                with client:
                    answer = answer_of(client)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 5\r\n" in answer.lower()
                assert b"too many connections" in answer
            first.sendall(WHOLE)
            assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        deadline = time.monotonic() + 60
        while True:
            with connected(listening) as client:
                with suppress(ConnectionError):
                    client.sendall(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                if answer_of(client).startswith(b"HTTP/1.1 200 "):
                    break
            assert time.monotonic() < deadline


def test_a_server_that_ends_without_an_error_is_noticed(listening: socket.socket) -> None:
    async def never_starts(scope: Scope, _: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed"})

    with (
        pytest.raises(DescribedFailure, match="the HTTP server ended"),
        http_server(never_starts, listening, LIMITS),
    ):
        pass


def test_a_server_that_ends_later_is_noticed(listening: socket.socket) -> None:
    with http_server(service(), listening, LIMITS) as server:
        server.check()
        server.stop()
        with pytest.raises(DescribedFailure, match="the HTTP server ended"):
            server.check()


def test_an_origin_that_is_no_address_is_foreign() -> None:
    nobody: Any = None  # the models, which are not asked
    client = TestClient(build_app(nobody, ["all"], {}, None, ["*"], Limits()))
    for origin in ("http://[", "http://]/", "null", "", "http://elsewhere"):
        assert client.post("/tag", headers={"Origin": origin}).status_code == 403
    assert client.post("/tag", headers={"Origin": "http://testserver"}).status_code == 415


class Call:
    """An answer of Ray Serve. `error`: what it raises; without it, it never comes."""

    def __init__(self, result: object = None, error: Exception | None = None) -> None:
        self._result, self._error, self.cancelled = result, error, False

    def __await__(self) -> Generator[Any, None, object]:
        if self._error:
            raise self._error
        if self._result is None:
            yield from asyncio.Event().wait().__await__()
        return self._result

    def cancel(self) -> None:
        self.cancelled = True


def models(calls: list[Call], **limits: Any) -> TestClient:
    """A service whose models make these calls, in turn."""
    queue = iter(calls)
    handle: Any = SimpleNamespace(
        options=lambda **_: SimpleNamespace(remote=lambda *_: next(queue))
    )
    return TestClient(build_app(handle, ["all"], {}, None, ["*"], Limits(**limits)))


def two_images() -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (name, b"x")) for name in ("a", "b")]


def test_models_that_hang_time_out_and_are_told() -> None:
    calls = [Call(TaggedImage("v1", [])), Call()]
    answer = models(calls, seconds=0.2).post("/tag", files=two_images())
    assert answer.status_code == 504
    assert answer.json() == {"error": "the request timed out after 0.2 s"}
    assert [call.cancelled for call in calls] == [False, True]


def test_calls_beside_one_that_failed_are_ended_before_their_room_is_free() -> None:
    calls = [Call(), Call(error=RayActorError()), Call(error=RayActorError())]
    later = [Call(TaggedImage("v1", [])) for _ in range(2)]
    with models([*calls, *later], waiting=2) as client:  # one loop, whose end would end them too
        answer = client.post("/tag", files=two_images())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert calls[0].cancelled
        assert client.post("/tag", files=two_images()).status_code == 200


@pytest.mark.parametrize("path", ["/tag", "/regions?label=a"])
def test_refusals_of_models_say_when_to_retry(path: str) -> None:
    client = models([Call(Refusal(429, "busy", retry_after=1))])
    answer = client.post(path, files=two_images()[:1])
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
