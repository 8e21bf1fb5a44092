"""Slots of a sweep: who may load, who may tune, and what the dead do not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from workers.tuning.slots import Slots


async def settled() -> None:
    """Let everybody who can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=10))


def test_as_many_tune_as_there_are_slots_and_the_next_one_follows() -> None:
    async def story() -> None:
        slots = Slots(2)
        waits = [asyncio.create_task(slots.enter(trial)) for trial in ("a", "b", "c")]
        await settled()
        assert [wait.done() for wait in waits] == [True, True, False]
        await slots.enter("a")  # another rank of the same trial
        await slots.leave("b")
        await waits[2]

    run(story())


def test_one_loads_when_another_has_loaded() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.load("a")
        next_one = asyncio.create_task(slots.load("b"))
        await settled()
        assert not next_one.done()
        await slots.enter("a")
        await next_one

    run(story())


def test_who_has_left_while_waiting_never_takes_a_slot() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.enter("a")
        ghost = asyncio.create_task(slots.enter("dead"))
        await settled()
        await slots.leave("dead")
        await ghost
        await slots.leave("a")
        await slots.enter("b")

    run(story())


def test_a_trial_that_lost_its_workers_comes_back() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.enter("a")
        await slots.leave("a")  # its workers died
        await slots.enter("b")
        back = asyncio.create_task(slots.enter("a"))
        await settled()
        assert not back.done()
        await slots.leave("b")
        await back

    run(story())
