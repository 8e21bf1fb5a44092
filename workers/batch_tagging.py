"""Ray actors that tag files, in order and with no more of them under way than are soon wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import ray

from prompt_tuning.tagging.tag_stream import Tagged, TagRule, chunks, started_ahead, tag_files
from prompt_tuning.tagging.tagger import BATCH, Tagger
from workers.waiting import Waiting

# Tasks that a worker has been given at once: one more than it can do, so that it need not wait.
_TASKS_PER_WORKER = 2
_MOST_FILES_PER_TASK = 128


@ray.remote(max_restarts=-1, max_task_retries=3)
class _TaggingWorker:
    def __init__(
        self, artifact: Path, labels: list[str] | None, cache: Path, gpus: float, threads: int
    ) -> None:
        tagger = Tagger.load(artifact, "cuda" if gpus else "cpu", cache)
        self._tagger = tagger.with_labels(labels) if labels else tagger
        self._threads = threads

    def ready(self) -> None: ...

    def tag(self, files: list[Path], rule: TagRule) -> list[Tagged]:
        return list(tag_files(self._tagger, files, rule, self._threads))


def tag_on_workers(
    artifact: Path,
    labels: list[str] | None,
    cache: Path,
    files: Iterable[Path],
    count: int,
    rule: TagRule,
    workers: int,
    cpus: int,
    gpus: float,
) -> Iterator[Tagged]:
    """What became of each of `count` files, in order, from `workers` actors of so many CPUs and
    GPUs each.

    A worker that dies is started again, and what it had is done once more.

    Raises:
        DescribedFailure: when no worker can be placed, or none comes to an end.
    """
    worker: Any = _TaggingWorker.options(num_cpus=cpus, num_gpus=gpus)  # type: ignore[attr-defined]
    waiting = Waiting("tagging workers", {"CPU": cpus, "GPU": gpus})
    made = [worker.remote(artifact, labels, cache, gpus, cpus)]
    # Alone: what a backbone derives from its weights is then computed only once.
    ray.get(waiting.first([made[0].ready.remote()]))
    made += [worker.remote(artifact, labels, cache, gpus, cpus) for _ in range(workers - 1)]
    turns = cycle(made)
    for task in started_ahead(
        chunks(files, files_a_task(count, workers, gpus)),
        lambda chunk: next(turns).tag.remote(chunk, rule),
        _TASKS_PER_WORKER * workers,
    ):
        yield from ray.get(waiting.first([task]))


def files_a_task(count: int, workers: int, gpus: float) -> int:
    """How many of `count` files are one task: as many for each worker, and whole batches, for then
    scores are the same to the bit on any number of workers."""
    batch = BATCH["cuda" if gpus else "cpu"]
    tasks = workers * max(1, ceil(count / (workers * _MOST_FILES_PER_TASK)))
    return batch * max(1, ceil(count / tasks / batch))
