"""Slots of a sweep: trials take turns in tuning, while the next ones already load.

Starting the processes of a trial and loading the model takes seconds. A sweep therefore runs a few
trials more than fit: these load early, and then wait here until a slot is free.
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
        self._loading: set[str] = set()
        self._tuning: set[str] = set()
        self._releases: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def wait_to_load(self, trial: str) -> None:
        """Wait until the trial may start its processes."""
        await self._join(trial, self._loading)

    async def wait_to_tune(self, trial: str) -> None:
        """Wait until the trial, which has loaded, may tune. Every rank of a trial calls this."""
        async with self._changed:
            self._loading.discard(trial)
            self._changed.notify_all()
        await self._join(trial, self._tuning)

    async def release(self, trial: str) -> None:
        """Free the slot of a trial that has ended or lost its processes, and end its waits."""
        async with self._changed:
            self._releases[trial] += 1
            self._loading.discard(trial)
            self._tuning.discard(trial)
            self._changed.notify_all()

    async def _join(self, trial: str, group: set[str]) -> None:
        # The process that waits may have died: then the trial was released, and must not join.
        releases = self._releases[trial]
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._releases[trial] != releases or trial in group or len(group) < self._count
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
