"""Tagging a stream of files, however long: images are read while others are encoded.

A file that cannot be read has its reason in the place of its tags, and the stream goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.images import open_image
from prompt_tuning.tagging.tagger import Tag, Tagger

Item = TypeVar("Item")
Started = TypeVar("Started")


@dataclass(frozen=True)
class Tagged:
    """What became of a file: its tags, best first, or the reason why it cannot be read."""

    tags: list[Tag] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class TagRule:
    """Which labels become tags (see `Tagger.tag`)."""

    threshold: float | None = None
    top: int | None = None


def tag_files(
    tagger: Tagger, files: Iterable[Path], rule: TagRule, threads: int = 1
) -> Iterator[Tagged]:
    """What became of each file, in order; `threads` as in `score_files`."""
    for scored in score_files(tagger, files, threads):
        if isinstance(scored, str):
            yield Tagged(error=scored)
        else:
            [tags] = tagger.tags(scored[None], rule.threshold, rule.top)
            yield Tagged(tags)


def score_files(
    tagger: Tagger, files: Iterable[Path], threads: int = 1
) -> Iterator[np.ndarray | str]:
    """Each file's raw scores `(classes,)` in order, or the reason why it cannot be read.

    Every `tagger.batch` files one after the other are a batch, less those that cannot be read. One
    thread reads and encodes it alone: many that share one wait for each other, and on a machine
    that others use too, for long. So the same files also have the same scores, to the last bit, on
    any number of cores, wherever in a stream such a batch begins. A GPU has one batch at a time.
    `threads` threads work at batches ahead.
    """
    model = nullcontext() if tagger.device.type == "cpu" else Lock()

    def work(batch: list[Path]) -> list[np.ndarray | str]:
        read = [_read(tagger, file) for file in batch]
        pixels = [of_file for of_file in read if isinstance(of_file, Tensor)]
        with model:
            coming = iter(tagger.score_pixels(torch.stack(pixels)) if pixels else ())
        return [of_file if isinstance(of_file, str) else next(coming) for of_file in read]

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in started_ahead(
            chunks(files, tagger.batch), lambda batch: pool.submit(work, batch), threads + 1
        ):
            yield from batch.result()


def _read(tagger: Tagger, file: Path) -> Tensor | str:
    """Pixels, or the reason why there are none."""
    try:
        return tagger.pixels(open_image(file))
    except ValueError as error:
        return str(error).removeprefix(f"{file}: ")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter if need be."""
    coming = iter(items)
    while chunk := list(islice(coming, size)):
        yield chunk


def started_ahead(
    items: Iterable[Item], start: Callable[[Item], Started], ahead: int
) -> Iterator[Started]:
    """What `start` gave for each item, in order; as many as `ahead` are started before wanted."""
    waiting: deque[Started] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
