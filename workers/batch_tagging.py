"""Ray actors that tag a stream of files, and give the results in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import ray

from prompt_tuning.backbones.base import VIEWS_PER_BATCH
from prompt_tuning.tagging.tag_stream import Tagged, TagRule, chunks, started_ahead, tag_files
from prompt_tuning.tagging.tagger import Tagger
from workers.waiting import Waiting

# One runs, the next one waits at the worker, so that it need not wait for us.
_TASKS_PER_WORKER = 2
_MAX_FILES_PER_TASK = 128


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
    """Tag `count` files with `workers` actors, each with `cpus` and `gpus`; results are in order.

    A worker that dies is restarted, and its tasks are repeated.

    Raises:
        DescribedFailure: when workers cannot be placed, or give no result for too long.
    """
    worker: Any = _TaggingWorker.options(num_cpus=cpus, num_gpus=gpus)  # type: ignore[attr-defined]
    waiting = Waiting("tagging workers", {"CPU": cpus, "GPU": gpus})
    actors = [worker.remote(artifact, labels, cache, gpus, cpus)]
    # The first one alone, so that what a backbone computes from its weights is computed once.
    ray.get(waiting.first([actors[0].ready.remote()]))
    actors += [worker.remote(artifact, labels, cache, gpus, cpus) for _ in range(workers - 1)]
    turns = cycle(actors)
    for task in started_ahead(
        chunks(files, files_per_task(count, workers, gpus)),
        lambda chunk: next(turns).tag.remote(chunk, rule),
        _TASKS_PER_WORKER * workers,
    ):
        yield from ray.get(waiting.first([task]))


def files_per_task(count: int, workers: int, gpus: float) -> int:
    """How many of `count` files a task has.

    Workers get equal numbers of tasks. Tasks have whole batches, because then scores are the same
    to the bit on any number of workers.
    """
    batch = VIEWS_PER_BATCH["cuda" if gpus else "cpu"]
    tasks = workers * max(1, ceil(count / (workers * _MAX_FILES_PER_TASK)))
    return batch * max(1, ceil(count / tasks / batch))
