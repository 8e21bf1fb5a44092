"""What the driver's loop of feature extraction costs with 1,024 workers that only sleep.

    python benchmarks/feature_scale.py [--gpus]

Real: `encode_images` with its queue, its waiting and its links to finished shards, the serialised
lists of files, and a call of Ray's for each shard. Simulated: the workers. 1,024 processes do not
fit here, so four actors stand for 256 workers each and sleep (log-normal, mean 3 s) for each
shard, then make its file. So neither Ray's choice of a node for each task nor a file system is
measured. `--gpus`: shards as for GPUs, of 1,024 images instead of 48.

`overhead` compares the wall time with the schedule in which each worker takes the next shard at
once; `tail` is what that schedule itself loses, because workers run out of shards at the end.
`driver_cpu_ms` is the
processor time of the driver per shard, with Ray's threads. `finish_s`: from the last shard to the
finished folder. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.features import Features, save_features
from workers import features
from workers.features import encode_images

MEAN_S, SIGMA = 3.0, 0.3
ACTORS = 4


def sleep_s(part: str) -> float:
    """Seconds that a shard takes, by the name of its folder."""
    return random.Random(part).lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)


def greedy_s(sleeps_s: list[float], workers: int) -> float:
    """Seconds it takes when workers take the next shard at once, and nothing else costs time."""
    free_at = [0.0] * workers
    for seconds in sleeps_s:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


class SleepingWorkers:
    """Many workers: each call of `encode` is one that sleeps and then makes the shard's file."""

    def __init__(self, template: str) -> None:
        self._template = template

    async def encode(self, _: int, files: list[Path], *settings: Any) -> None:
        part: Path = settings[-1]
        await asyncio.sleep(sleep_s(part.name))
        part.mkdir(parents=True)
        os.link(self._template, part / features._SHARD)


class StandIn:
    """In place of the Ray task that encodes a shard."""

    def __init__(self, template: Path, workers: int) -> None:
        actor: Any = ray.remote(SleepingWorkers)
        actors = [
            actor.options(num_cpus=0, max_concurrency=workers // ACTORS).remote(str(template))
            for _ in range(ACTORS)
        ]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        self._turns = itertools.cycle(actors)

    def options(self, **_: object) -> StandIn:
        return self

    def remote(self, *arguments: object) -> ray.ObjectRef:
        return next(self._turns).encode.remote(*arguments)


class Loaded:
    """In place of the task that loads the model, whose time is not the driver's."""

    def options(self, **_: object) -> Loaded:
        return self

    def remote(self, *_: object) -> ray.ObjectRef:
        return ray.put(None)


class Files(Sequence[Path]):
    """As many names as wanted, in the memory of one shard's."""

    def __init__(self, count: int, per_shard: int) -> None:
        names = (f"/shared/photos/2026/11/28/IMG_{i:06d}.jpg" for i in range(per_shard))
        self._count, self._names = count, [Path(name) for name in names]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> Any:
        return self._names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1024)
    parser.add_argument("--shards-per-worker", type=int, default=30)
    parser.add_argument("--gpus", action="store_true")
    options = parser.parse_args()
    shards = options.workers * options.shards_per_worker
    per_shard = features._IMAGES_PER_SHARD["cuda" if options.gpus else "cpu"]
    driver = psutil.Process()
    ray.init(
        address="local",
        num_cpus=options.workers,
        num_gpus=options.workers if options.gpus else 0,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
    )
    finished: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_features(
            folder / "template",
            Features(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1, dtype=torch.long)),
        )
        features._image_shard = StandIn(folder / "template", options.workers)  # type: ignore[assignment]
        features._load = Loaded()  # type: ignore[assignment]
        files = Files(shards * per_shard, per_shard)
        before, start = driver.cpu_times(), time.perf_counter()

        def on_items(_: int) -> None:
            finished.append(time.perf_counter() - start)
            if len(finished) % (shards // 10) == 0:
                print(f"{len(finished)} shards after {finished[-1]:.1f} s", flush=True)

        encode_images(
            files,
            VLMSettings(),
            folder,
            folder / "parts",
            folder / "features",
            on_items,
            gpus=1 if options.gpus else 0,
        )
        wall_s, cpu = time.perf_counter() - start, driver.cpu_times()
        peak_mib = driver.memory_info().rss / 2**20
        first = per_shard * (shards - 1)
        names = [
            features._part(folder, range(i, i + 1)).name for i in range(0, first + 1, per_shard)
        ]
    ray.shutdown()
    sleeps_s = [sleep_s(name) for name in names]
    shared_s, ideal_s = sum(sleeps_s) / options.workers, greedy_s(sleeps_s, options.workers)
    cpu_s = cpu.user + cpu.system - before.user - before.system
    print(
        json.dumps(
            {
                "overhead": round(wall_s / ideal_s - 1, 4),
                "tail": round(ideal_s / shared_s - 1, 4),
                "wall_s": round(wall_s, 2),
                "ideal_s": round(ideal_s, 2),
                "finish_s": round(wall_s - finished[-1], 2),
                "driver_cpu_ms": round(1000 * cpu_s / shards, 2),
                "driver_cpu_share": round(cpu_s / wall_s, 2),
                "driver_mib": round(peak_mib),
                "shards": shards,
                "images_per_shard": per_shard,
                "workers": options.workers,
                "cores": os.cpu_count(),
                "sleep_mean_s": MEAN_S,
                "sleep_sigma": SIGMA,
            }
        )
    )


if __name__ == "__main__":
    main()
