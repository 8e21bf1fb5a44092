"""Tagging a stream of files, however long: pictures are read while others are encoded.

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

import torch
from torch import Tensor

from prompt_tuning.image_files import open_image
from prompt_tuning.tagger import Tag, Tagger

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
    """What became of each file, in order; `threads` threads work at batches ahead.

    Every `tagger.batch` files one after the other are a batch, less those that cannot be read. One
    thread reads and encodes it alone: many that share one wait for each other, and on a machine
    that others use too, for long. So the same files also have the same scores, to the last bit, on
    any number of cores, wherever in a stream such a batch begins. A GPU has one batch at a time.
    """
    model = nullcontext() if tagger.device.type == "cpu" else Lock()

    def work(batch: list[Path]) -> list[Tagged]:
        read = [_read(tagger, file) for file in batch]
        with model:
            return list(_tag_batch(tagger, read, rule))

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


def _tag_batch(tagger: Tagger, batch: list[Tensor | str], rule: TagRule) -> Iterator[Tagged]:
    pixels = [of_file for of_file in batch if isinstance(of_file, Tensor)]
    tags: list[list[Tag]] = []
    if pixels:
        scores = tagger.pixel_scores(torch.stack(pixels))
        tags = tagger.tags(scores, rule.threshold, rule.top)
    coming = iter(tags)
    for of_file in batch:
        yield Tagged(error=of_file) if isinstance(of_file, str) else Tagged(next(coming))


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
