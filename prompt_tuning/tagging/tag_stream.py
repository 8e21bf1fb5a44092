"""Tagging a stream of files of any length: images are read while others are encoded.

A file that cannot be read gets an error in place of tags, and the stream goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from prompt_tuning.backbones.base import VLM
from prompt_tuning.features import Features
from prompt_tuning.images import open_image
from prompt_tuning.tagging.tagger import Tag, Tagger

Item = TypeVar("Item")
Started = TypeVar("Started")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Tagged:
    """A file's tags, best first, or the reason why it cannot be read."""

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
    """The result of each file, in order; `threads` as in `score_files`."""
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

    `threads` as in `_each_file`.
    """
    return _each_file(tagger.vlm, files, lambda pixels: list(tagger.score_pixels(pixels)), threads)


def encode_files(vlm: VLM, files: Iterable[Path], threads: int = 1) -> Iterator[Features | str]:
    """Each file's features, a batch of one, in order, or the reason why it cannot be read.

    `threads` as in `_each_file`.
    """

    def features(pixels: Tensor) -> list[Features]:
        encoded = vlm.encode_image(pixels.to(vlm.device)).to("cpu").float()
        return [encoded.take(torch.tensor([row])) for row in range(len(pixels))]

    return _each_file(vlm, files, features, threads)


def _each_file(
    vlm: VLM, files: Iterable[Path], work: Callable[[Tensor], Sequence[Result]], threads: int
) -> Iterator[Result | str]:
    """The results of `work` on batches of pixels, one a file, or why the file cannot be read.

    Each `vlm.images_per_batch` consecutive files are a batch, without those that cannot be read.
    One thread reads and encodes a whole batch: threads that share a batch wait for each other, and
    for long on a busy machine. So results are the same to the last bit on any number of cores. A
    GPU gets one batch at a time. `threads` threads work ahead.
    """
    model = nullcontext() if vlm.device.type == "cpu" else Lock()

    def of_batch(batch: list[Path]) -> list[Result | str]:
        read = [_read(vlm, file) for file in batch]
        pixels = [image for image in read if isinstance(image, Tensor)]
        with model:
            results = iter(work(torch.stack(pixels)) if pixels else ())
        return [result if isinstance(result, str) else next(results) for result in read]

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in started_ahead(
            chunks(files, vlm.images_per_batch),
            lambda batch: pool.submit(of_batch, batch),
            threads + 1,
        ):
            yield from batch.result()


def _read(vlm: VLM, file: Path) -> Tensor | str:
    """Pixels, or the reason why the file cannot be read."""
    try:
        return vlm.preprocess(open_image(file))
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
    """The result of `start` for each item, in order; up to `ahead` items are started early."""
    waiting: deque[Started] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
