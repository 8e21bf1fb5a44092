"""Slots of a sweep: trials take turns in tuning, while the next ones already load.

Starting the processes of a trial and loading the model takes seconds. A sweep therefore runs a few
trials more than fit: these load early, and then wait here until a slot is free. They load in the
order of their places, whichever driver starts first, so that ASHA gets results in the same order.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import ray.train
from ray.actor import ActorHandle


class Slots:
    """An actor that decides which trials may load, and which of the loaded ones may tune.

    At most `count` trials load and at most `count` tune at any time. Without the limit on loading,
    all trials would load at the start and slow down the first ones.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._next_place = 0
        self._ended: set[int] = set()
        self._loading: set[str] = set()
        self._tuning: set[str] = set()
        self._releases: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def wait_to_load(self, trial: str, place: int) -> None:
        """Wait until the trial may start its processes: after those of all earlier places."""
        await self._join(trial, self._loading, place)
        async with self._changed:
            if trial in self._loading and place == self._next_place:
                self._pass_next()

    async def wait_to_tune(self, trial: str) -> None:
        """Wait until the trial, which has loaded, may tune. Every rank of a trial calls this."""
        async with self._changed:
            self._loading.discard(trial)
            self._changed.notify_all()
        await self._join(trial, self._tuning, place=0)

    async def release(self, trial: str) -> None:
        """Free the slot of a trial that has ended or lost its processes, and end its waits."""
        async with self._changed:
            self._releases[trial] += 1
            self._loading.discard(trial)
            self._tuning.discard(trial)
            self._changed.notify_all()

    async def end(self, trial: str, place: int) -> None:
        """Release a trial that will not run again: later places need not wait for it."""
        await self.release(trial)
        async with self._changed:
            self._ended.add(place)
            if place == self._next_place:
                self._pass_next()

    def _pass_next(self) -> None:
        self._next_place += 1
        while self._next_place in self._ended:
            self._next_place += 1
        self._changed.notify_all()

    async def _join(self, trial: str, group: set[str], place: int) -> None:
        # The process that waits may have died: then the trial was released, and must not join.
        releases = self._releases[trial]
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._releases[trial] != releases
                    or trial in group
                    or (len(group) < self._count and place <= self._next_place)
                )
            )
            if self._releases[trial] == releases:
                group.add(trial)


class ReleaseOnFailure(ray.train.UserCallback):
    """Releases a trial's slot while its dead workers restart: a trial that waits for this slot may
    hold the resources that the restart needs."""

    def __init__(self, slots: ActorHandle, trial: str) -> None:
        self._slots, self._trial = slots, trial

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in Ray Train's controller."""
        self._slots.release.remote(self._trial)
