"""Threads that decode images. What they were given counts until it ends, whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Threads:
    """A pool of `threads`. Each computes alone.

    One thread per batch is faster than threads that share one and wait for each other.
    """

    def __init__(self, threads: int, most: int) -> None:
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._most, self._under_way = most, 0

    def full(self) -> bool:
        """Whether `most` pieces of work have been begun or wait.

        No thread can be stopped: what the client gave up is left out if it has not begun, and
        counts until its end if it has.
        """
        return self._under_way >= self._most

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of work in a thread."""
        loop = asyncio.get_running_loop()

        def ended(_: Future[Result]) -> None:
            loop.call_soon_threadsafe(self._ended)

        self._under_way += 1
        future = self._pool.submit(work, *arguments)
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def _ended(self) -> None:
        self._under_way -= 1
