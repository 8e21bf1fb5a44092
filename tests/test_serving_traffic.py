"""Requests to the tagging service: bodies within memory, clients that hang up, the end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.traffic import Traffic

LIMITS = Limits(request_bytes=100, all_bytes=250)


class Client:
    """A request that is under way, until its body comes or it hangs up."""

    def __init__(self, traffic: Traffic, path: str = "/tag", length: int | None = 100) -> None:
        self.status = 0
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        self.task = asyncio.create_task(traffic(scope, self._messages.get, self._sent))

    async def _sent(self, message: Message) -> None:
        self.status = message.get("status", self.status)

    def say(self, kind: str) -> None:
        self._messages.put_nowait({"type": kind, "body": b"x", "more_body": False})


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await PlainTextResponse("")(scope, receive, send)


def run(scenario: Callable[[Traffic], object], metrics: Metrics | None = None) -> None:
    async def all_of_it() -> None:
        await scenario(Traffic(answered, LIMITS, metrics or Metrics()))  # type: ignore[misc]

    asyncio.run(all_of_it())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def counts(metrics: Metrics) -> dict[str, float]:
    found = re.findall(
        r'^datafree_requests_total{.*status="(\d+)"} (.*)$', metrics.text().decode(), re.M
    )
    return {status: float(count) for status, count in found}


def test_bodies_are_refused_unread_when_those_under_way_fill_the_memory() -> None:
    async def scenario(traffic: Traffic) -> None:
        first, second = Client(traffic), Client(traffic, length=None)  # as long as it may be
        await settle()
        third, page = Client(traffic), Client(traffic, path="/health")
        await settle()
        assert (third.task.done(), third.status) == (True, 429)
        assert not page.task.done()  # nobody who sends no images is refused
        small = Client(traffic, length=50)
        first.say("http.request")
        await first.task
        again = Client(traffic)
        for client in (second, page, small, again):
            client.say("http.request")
            await client.task
        assert {client.status for client in (first, second, small, again, page)} == {200}

    run(scenario)


def test_a_client_that_hangs_up_does_not_count_as_a_failure() -> None:
    metrics = Metrics()

    async def scenario(traffic: Traffic) -> None:
        while_reading, cancelled, patient = (Client(traffic, length=10) for _ in range(3))
        await settle()
        while_reading.say("http.disconnect")
        cancelled.task.cancel()  # as Ray Serve ends what nobody waits for
        patient.say("http.request")
        await asyncio.wait([while_reading.task, cancelled.task, patient.task])

    run(scenario, metrics)
    assert counts(metrics) == {"499": 2, "200": 1}


def test_draining_waits_for_requests_under_way_and_refuses_new_ones() -> None:
    async def scenario(traffic: Traffic) -> None:
        under_way = Client(traffic)
        await settle()
        end = asyncio.create_task(traffic.drain())
        await settle()
        late, health = Client(traffic), Client(traffic, path="/health")
        await settle()
        assert (late.status, health.status) == (503, 503)
        assert not end.done()
        under_way.say("http.request")
        await asyncio.wait_for(end, 5)
        assert under_way.status == 200

    run(scenario)
