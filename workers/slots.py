"""Slots of a sweep: as many trials tune at once as fit, while the next ones load and wait."""

from __future__ import annotations

import asyncio


class Slots:
    """An actor that says which trials may load, and of the loaded ones which may tune.

    As many load at once as tune, so that the first ones need not share the machine with those who
    will wait for them. Whoever notices that a trial has ended or lost its workers gives back what
    it has.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._loading: set[str] = set()
        self._tuning: set[str] = set()
        self._changed = asyncio.Condition()

    async def load(self, trial: str) -> None:
        """Wait until the trial may start its processes."""
        await self._wait(trial, self._loading)

    async def enter(self, trial: str) -> None:
        """Say that the trial has loaded, and wait for its slot."""
        await self._remove(trial, self._loading)
        await self._wait(trial, self._tuning)

    async def leave(self, trial: str) -> None:
        """Give back what the trial has."""
        await self._remove(trial, self._loading, self._tuning)

    async def _wait(self, trial: str, crowd: set[str]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: trial in crowd or len(crowd) < self._count)
            crowd.add(trial)

    async def _remove(self, trial: str, *crowds: set[str]) -> None:
        async with self._changed:
            for crowd in crowds:
                crowd.discard(trial)
            self._changed.notify_all()
