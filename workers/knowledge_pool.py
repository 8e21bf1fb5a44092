"""The pool of engines: answers what the ledger does not have yet, a shard at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError

from prompt_tuning.captions import Answer
from prompt_tuning.questions import Question
from workers.ledger import Ledger, Shard, cut_shards
from workers.llm_engine import EngineSettings, LLMEngine, SamplingSettings

OnShard = Callable[[Shard, list[Answer], bool], None]

_SHARDS_IN_FLIGHT = 2
_DEATHS_ALLOWED = 2


@dataclass(frozen=True)
class Placement:
    """How many engines run, each on how much."""

    engines: int
    cpus: int
    gpus: int


class KnowledgePool:
    """Engines as Ray actors, started when the first shard needs one and gone on exit."""

    def __init__(
        self,
        settings: EngineSettings,
        sampling: SamplingSettings,
        placement: Placement,
        model: Path | str,
        identity: dict[str, Any],
        shard_size: int,
        ledger: Ledger,
    ) -> None:
        self._settings, self._sampling, self._placement = settings, sampling, placement
        self._model, self._identity = model, identity
        self._shard_size, self._ledger = shard_size, ledger
        self._engines: list[Any] = []

    def __enter__(self) -> KnowledgePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for engine in self._engines:
            ray.kill(engine)

    def answers(
        self, questions: list[Question], on_shard: OnShard
    ) -> list[tuple[Question, Answer]]:
        """Answers to all questions, in their order within each kind.

        `on_shard` is told of each shard with its answers, and whether they are fresh or were known.

        Raises:
            RuntimeError: when an engine cannot load, or engines keep dying on the same shard.
        """
        shards = cut_shards(questions, self._shard_size, self._identity)
        missing = []
        for shard in shards:
            if self._ledger.has(shard):
                on_shard(shard, self._ledger.read(shard), False)
            else:
                missing.append(shard)
        self._answer_missing(missing, on_shard)
        return [
            pair
            for shard in shards
            for pair in zip(shard.questions, self._ledger.read(shard), strict=True)
        ]

    def _answer_missing(self, missing: list[Shard], on_shard: OnShard) -> None:
        waiting = list(reversed(missing))
        wanted = min(self._placement.engines, len(missing))
        while len(self._engines) < wanted:
            self._engines.append(self._start_engine())
        running: dict[Any, tuple[int, Shard]] = {}
        deaths: dict[str, int] = {}
        while waiting or running:
            while waiting and len(running) < _SHARDS_IN_FLIGHT * len(self._engines):
                busy = Counter(engine for engine, _ in running.values())
                index = min(range(len(self._engines)), key=lambda engine: busy[engine])
                shard = waiting.pop()
                task = self._engines[index].answer.remote(list(shard.questions), self._sampling)
                running[task] = (index, shard)
            (done, *_), _ = ray.wait(list(running))
            index, shard = running.pop(done)
            try:
                answers = ray.get(done)
            except RayActorError as error:
                if error.actor_init_failed:
                    raise _load_failure(self._settings, error) from None
                deaths[shard.key] = deaths.get(shard.key, 0) + 1
                if deaths[shard.key] > _DEATHS_ALLOWED:
                    raise RuntimeError(
                        f"knowledge: engines died {deaths[shard.key]} times on one shard "
                        f"(first question: {shard.questions[0].pattern.splitlines()[-1]!r})"
                    ) from error
                waiting.append(shard)
                for task in [t for t, (engine, _) in running.items() if engine == index]:
                    waiting.append(running.pop(task)[1])
                self._engines[index] = self._start_engine()
                continue
            self._ledger.write(shard, answers)
            on_shard(shard, answers, True)

    def _start_engine(self) -> Any:
        actor = ray.remote(LLMEngine).options(
            num_cpus=self._placement.cpus, num_gpus=self._placement.gpus
        )
        return actor.remote(self._settings, self._model, self._placement.gpus > 0)


def _load_failure(settings: EngineSettings, error: RayActorError) -> RuntimeError:
    reason = str(error).strip().splitlines()[-1].strip()
    failure = RuntimeError(
        f"knowledge.llm.model {settings.model!r} cannot be loaded by vLLM: {reason}"
    )
    failure.add_note(str(error))
    return failure
