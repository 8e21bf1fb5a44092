"""Slots of a sweep: as many trials tune at once as fit, while the next ones load and wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import ray.train
from ray.actor import ActorHandle


class Slots:
    """An actor that says which trials may load, and of the loaded ones which may tune.

    As many load at once as tune, so that the first ones need not share the machine with those who
    will wait for them. Whoever notices that a trial has ended or lost its processes gives back what
    it has.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._loading: set[str] = set()
        self._tuning: set[str] = set()
        self._left: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def load(self, trial: str) -> None:
        """Wait until the trial may start its processes."""
        await self._join(trial, self._loading)

    async def enter(self, trial: str) -> None:
        """Say that the trial has loaded, and wait for its slot."""
        async with self._changed:
            self._loading.discard(trial)
            self._changed.notify_all()
        await self._join(trial, self._tuning)

    async def leave(self, trial: str) -> None:
        """Give back what the trial has, and what it waits for."""
        async with self._changed:
            self._left[trial] += 1
            self._loading.discard(trial)
            self._tuning.discard(trial)
            self._changed.notify_all()

    async def _join(self, trial: str, crowd: set[str]) -> None:
        # Whoever waits may have died meanwhile: then the trial has left, and nobody must enter.
        came = self._left[trial]
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._left[trial] != came or trial in crowd or len(crowd) < self._count
            )
            if self._left[trial] == came:
                crowd.add(trial)


class SlotGivenBack(ray.train.UserCallback):
    """While workers that died are not back another trial may tune; it may hold what they need."""

    def __init__(self, slots: ActorHandle, trial: str) -> None:
        self._slots, self._trial = slots, trial

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in Ray Train's controller."""
        self._slots.leave.remote(self._trial)
