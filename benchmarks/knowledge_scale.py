"""What the pool itself costs with 64 engines: an engine only sleeps, everything else is real.

    python benchmarks/knowledge_scale.py
    python benchmarks/knowledge_scale.py --engines 512 --processes 8 --shards 10240 --mean-s 10

200,000 questions, generated while they are asked, go in shards to 64 actors that sleep
(log-normal, `--mean-s` on average). Answers are published to a real ledger. `overhead` compares the
wall time, from the moment at which all actors are ready to the last published shard, with a perfect
distribution of the sleeps. `tail` is the part of it that no pool can avoid, because engines run
out of shards at the end. `driver_busy_ms` is the driver's work per shard without waiting, and
`limit_shards_s`, its inverse, is the most that the pool can do on this machine. `--processes`: so
many actors stand for all engines, whose processes would not fit into memory; the pool, its calls
and the ledger stay the same. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import math
import os
import random
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray

from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.knowledge import pool
from workers.knowledge.ledger import Ledger, cut_shards
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.pool import KnowledgePool
from workers.placement import Placement

MEAN_S, SIGMA = 2.0, 0.5
WORDS = "a small brown dog sleeps on old grass near the wall of red bricks today".split()


class SleepingEngine:
    """Sleeps as long as the shard's first seed says; before, until all engines are there."""

    def __init__(self, settings: LLMSettings, folder: Path, on_gpu: bool) -> None:
        self._folder, self._engines = folder, int(settings.model)
        (folder / f"{os.getpid()}").touch()

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        while len(os.listdir(self._folder)) < self._engines:
            time.sleep(0.5)
        time.sleep(sleep_s(questions[0].seed))
        return [Answer(" ".join([*WORDS, str(q.seed)]) + ".", True, 24) for q in questions]


class SleepingEngines:
    """Many engines in one process: each answers one shard after the other, in order."""

    def __init__(self) -> None:
        self._turns: dict[int, asyncio.Lock] = {}

    async def answer(
        self, engine: int, questions: list[Question], sampling: SamplingSettings
    ) -> list[Answer]:
        async with self._turns.setdefault(engine, asyncio.Lock()):
            await asyncio.sleep(sleep_s(questions[0].seed))
        return [Answer(" ".join([*WORDS, str(q.seed)]) + ".", True, 24) for q in questions]


class SharedActor:
    """In place of an engine's actor: one of few that stand for all engines."""

    hosts: ClassVar[list[Any]] = []
    engines = 0

    def __init__(self) -> None:
        self._number = SharedActor.engines
        SharedActor.engines += 1
        self._host = self.hosts[self._number % len(self.hosts)]
        self.__ray_ready__ = self._host.__ray_ready__
        self.answer = self

    def remote(self, questions: list[Question], sampling: SamplingSettings) -> ray.ObjectRef:
        answered: ray.ObjectRef = self._host.answer.remote(self._number, questions, sampling)
        return answered


class SharedEngine(pool._Engine):
    """An engine as the pool sees it, whose actor is a shared one."""

    def __init__(self, *_: object) -> None:
        self._group, self._actor = None, SharedActor()
        self.loading = self._actor.__ray_ready__.remote()
        self.calls = deque()
        self.at_work_since = time.monotonic()
        self.was_placed = True

    def end(self) -> None:
        pass


def sleep_s(seed: int) -> float:
    """Seconds that the shard takes whose first question has this seed."""
    return random.Random(seed).lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)


def greedy_s(sleeps_s: list[float], engines: int) -> float:
    """Seconds it takes when engines take the next shard at once, and nothing else costs time."""
    free_at = [0.0] * engines
    for seconds in sleeps_s:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def questions(first: int, count: int) -> Iterator[Question]:
    """Questions of about 1 KB each."""
    example = "dog, bicycle: A small brown dog runs beside a bicycle on the gravel path.\n"
    for seed in range(first, first + count):
        line = f"violin, lemon, number {seed}:"
        pattern = f"Sentences about things.\n{example * 12}{line}"
        yield Question(
            kind="relationship",
            categories=("violin", "lemon"),
            words=("violin", "lemon"),
            instruction=f"Write about {line}",
            pattern=pattern,
            shown=(example,) * 4,
            seed=seed,
        )


class Waits:
    """Measures how long the driver waits in `ray.wait`; the rest of its time it is busy."""

    def __init__(self) -> None:
        self.seconds, self._wait = 0.0, ray.wait

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._wait(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=5_000)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--processes", type=int, default=0, help="0: one for each engine")
    parser.add_argument("--mean-s", type=float, default=MEAN_S)
    options = parser.parse_args()
    globals()["MEAN_S"] = options.mean_s  # the actors get it with the functions
    size = options.questions // options.shards
    driver = psutil.Process()

    def rss_mib() -> float:
        return driver.memory_info().rss / 2**20

    sleeps_s = [sleep_s(first) for first in range(0, options.questions, size)]
    rss: dict[int, float] = {}  # shards published → MiB
    published = 0
    peak_mib = 0.0

    def on_shard(*_: object) -> None:
        nonlocal published, peak_mib
        published += 1
        if published % (options.shards // 100) == 0:
            rss[published] = rss_mib()
            peak_mib = max(peak_mib, rss[published])
        if published % (options.shards // 10) == 0:
            print(f"{published} shards, driver {rss_mib():.0f} MiB", flush=True)

    ray.init(
        address="local",
        num_cpus=options.processes or options.engines,
        include_dashboard=False,
        log_to_driver=False,
    )
    if options.processes:
        host: Any = ray.remote(SleepingEngines)
        hosts = [host.options(max_concurrency=1000).remote() for _ in range(options.processes)]
        SharedActor.hosts = hosts
        pool._Engine = SharedEngine  # type: ignore[assignment, misc]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ready").mkdir()
        settings = LLMSettings(model=str(options.engines))
        with KnowledgePool(
            settings,
            SamplingSettings(),
            Placement(options.engines, cpus=1, gpus=0),
            Path(folder) / "ready",
            Ledger(Path(folder) / "ledger"),
            SleepingEngine,
        ) as engines:
            start = time.perf_counter()
            first = options.questions  # other ones than those that are measured
            engines.answer(cut_shards([questions(first, options.engines)], 1, {}), lambda *_: None)
            startup_s = time.perf_counter() - start

            waits = Waits()
            ray.wait = waits
            cpu_before = driver.cpu_times()
            psutil.cpu_percent()
            start = time.perf_counter()
            shards = cut_shards([questions(0, options.questions)], size, {"model": "sleep"})
            engines.answer(shards, on_shard)
            wall_s = time.perf_counter() - start
            machine_percent = psutil.cpu_percent()
    cpu = driver.cpu_times()
    ray.shutdown()

    ideal_s = sum(sleeps_s) / options.engines
    busy_s = wall_s - waits.seconds
    cpu_s = cpu.user + cpu.system - cpu_before.user - cpu_before.system
    measured = list(rss.values())
    print(
        json.dumps(
            {
                "overhead": round(wall_s / ideal_s - 1, 4),
                "tail": round(greedy_s(sleeps_s, options.engines) / ideal_s - 1, 4),
                "wall_s": round(wall_s, 2),
                "ideal_s": round(ideal_s, 2),
                "startup_s": round(startup_s, 1),
                "peak_mib": round(peak_mib, 1),
                "growth_mib": round(measured[-1] - measured[len(measured) // 10], 1),
                "driver_busy_ms": round(1000 * busy_s / published, 2),
                "driver_cpu_ms": round(1000 * cpu_s / published, 2),
                "limit_shards_s": round(published / busy_s, 1),
                "machine_cpu_percent": machine_percent,
                "cores": os.cpu_count(),
                "shards": published,
                "questions": options.questions,
                "engines": options.engines,
                "processes": options.processes or options.engines,
                "sleep_mean_s": MEAN_S,
                "sleep_sigma": SIGMA,
            }
        )
    )


if __name__ == "__main__":
    main()
