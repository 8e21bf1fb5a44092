"""Slots of a sweep: which trials may load and tune, and that dead ones hold nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from workers.tuning.slots import Slots


async def settled() -> None:
    """Let every task that can continue do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=10))


def test_as_many_tune_as_there_are_slots_and_the_next_one_follows() -> None:
    async def story() -> None:
        slots = Slots(2)
        waits = [asyncio.create_task(slots.wait_to_tune(trial)) for trial in ("a", "b", "c")]
        await settled()
        assert [wait.done() for wait in waits] == [True, True, False]
        await slots.wait_to_tune("a")  # another rank of the same trial
        await slots.release("b")
        await waits[2]

    run(story())


def test_the_next_trial_loads_once_another_has_loaded() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.wait_to_load("a", 0)
        next_one = asyncio.create_task(slots.wait_to_load("b", 1))
        await settled()
        assert not next_one.done()
        await slots.wait_to_tune("a")
        await next_one

    run(story())


def test_trials_load_in_the_order_of_their_places() -> None:
    async def story() -> None:
        slots = Slots(2)
        places = {"c": 2, "b": 1, "a": 0, "d": 3}
        waits = {
            trial: asyncio.create_task(slots.wait_to_load(trial, place))
            for trial, place in places.items()
        }
        await settled()
        assert {trial for trial, wait in waits.items() if wait.done()} == {"a", "b"}
        await slots.wait_to_tune("b")
        await waits["c"]
        await slots.wait_to_load("a", 0)  # its driver started again
        assert not waits["d"].done()

    run(story())


def test_a_trial_that_never_loads_holds_up_the_next_ones_only_until_it_has_ended() -> None:
    async def story() -> None:
        slots = Slots(2)
        later = asyncio.create_task(slots.wait_to_load("c", 2))
        ghost = asyncio.create_task(slots.wait_to_load("b", 1))
        await settled()
        await slots.end("b", 1)
        await ghost
        assert not later.done()
        await slots.end("a", 0)
        await later

    run(story())


def test_a_trial_released_while_it_waits_takes_no_slot() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.wait_to_tune("a")
        ghost = asyncio.create_task(slots.wait_to_tune("dead"))
        await settled()
        await slots.release("dead")
        await ghost
        await slots.release("a")
        await slots.wait_to_tune("b")

    run(story())


def test_a_trial_that_lost_its_workers_waits_for_a_slot_again() -> None:
    async def story() -> None:
        slots = Slots(1)
        await slots.wait_to_tune("a")
        await slots.release("a")  # its workers died
        await slots.wait_to_tune("b")
        back = asyncio.create_task(slots.wait_to_tune("a"))
        await settled()
        assert not back.done()
        await slots.release("b")
        await back

    run(story())
