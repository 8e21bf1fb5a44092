"""The pool of engines: answers the shards that the ledger lacks, even when engines or nodes die.

One loop in the driver sends calls to the engines, waits for the oldest call of each engine, and
puts failed calls back in the queue. A failing shard is bisected to find the questions that no
engine can answer. Answers from the bisection are discarded, and the rest of the shard runs again in
one call, so its bytes do not depend on what failed.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prompt_tuning.knowledge.dialogue import Answer
from workers.cluster_probe import ask_nodes
from workers.knowledge.engine import LLMEngine
from workers.knowledge.engine_dtype import Dtype, common_dtype, native_dtype
from workers.knowledge.engine_errors import load_failure
from workers.knowledge.ledger import Ledger, Shard, failures_allowed
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.server import ServerFailure, ServerModel, describe_server
from workers.placement import Placement, fits_labels, holds
from workers.waiting import Waiting

_log = logging.getLogger(__name__)

# Called with a shard, its answers, whether they are new, and the number of engines that are ready.
OnShard = Callable[[Shard, list[Answer], bool, int], None]

# One that runs, and one queued behind it so that the engine does not wait for the driver.
_CALLS_PER_ENGINE = 2
# A write mostly waits for the disk; the loop hands out shards meanwhile. More of them hold memory.
_WRITES_AT_ONCE = 8
# A first failure may be chance: a node that went away, an engine that leaked memory.
_FAILURES_TO_CONFIRM = 2
# Bisections of a shard that found no failing question before the run is given up.
_MAX_INCONCLUSIVE = 2
_MAX_LOST_WHILE_LOADING = 2
# As many as may fail in a small shard: one more is tried alone, to see whether any works.
_MAX_FAILED = 3


@dataclass(eq=False)
class _Job:
    """A shard to answer. `failed`: why questions, by position in the shard, have no answer."""

    shard: Shard
    failed: dict[int, str] = field(default_factory=dict)
    inconclusive_bisections: int = 0

    def remaining(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.shard.questions)) if i not in self.failed)

    def error(self, cause: RayError, explanation: str) -> RuntimeError:
        question = self.shard.questions[0].line
        line = str(cause).strip().splitlines()[-1] if _is_death(cause) else _reason(cause)
        return RuntimeError(f"knowledge: {line} ({explanation}; its first question: {question!r})")


@dataclass(eq=False)
class _Bisection:
    """A search for failing questions: first a few alone, to see if any works, then by halves.

    `engine`, `error`: where and how the shard failed. `probes`: calls that are not finished.
    """

    job: _Job
    engine: _Engine
    error: RayError
    failed_before: int
    halving: bool = False
    probes: int = 0
    succeeded: int = 0


@dataclass(eq=False)
class _Call:
    """Questions, by position in the shard, for one engine: all remaining ones, or a probe."""

    job: _Job
    positions: tuple[int, ...]
    bisection: _Bisection | None = None
    failures: int = 0
    failed_on: _Engine | None = None


class _Engine:
    """An engine actor, in a placement group if it needs several GPUs of one node."""

    def __init__(self, engine: type, placement: Placement, *arguments: Any) -> None:
        self._group = None
        strategy: Any = "SPREAD"
        needs, labels = placement.resources, dict(placement.node_labels)
        if placement.gpus > 1:
            self._group = placement_group(
                [needs], bundle_label_selector=[labels] if labels else None
            )
            strategy = PlacementGroupSchedulingStrategy(self._group)
        actor: Any = ray.remote(engine).options(
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU"),
            resources=needs,
            # A placement group has chosen its nodes already.
            label_selector=None if self._group else labels,
            scheduling_strategy=strategy,
            max_concurrency=_concurrent_calls(engine),
        )
        self._actor: Any = actor.remote(*arguments)
        self.loading: ray.ObjectRef | None = self._actor.__ray_ready__.remote()  # None: loaded
        self.calls: deque[tuple[ray.ObjectRef, _Call]] = deque()
        # Since when it has loaded, or worked on its oldest call.
        self.at_work_since = time.monotonic()
        self.was_placed = False

    def ask(self, call: _Call, sampling: SamplingSettings) -> None:
        if not self.calls:
            self.at_work_since = time.monotonic()
        questions = [call.job.shard.questions[i] for i in call.positions]
        self.calls.append((self._actor.answer.remote(questions, sampling), call))

    def take_oldest(self) -> tuple[ray.ObjectRef, _Call]:
        self.at_work_since = time.monotonic()
        return self.calls.popleft()

    @property
    def placed(self) -> bool:
        """Whether a node runs the actor's process."""
        return bool(ray._private.state.actors(self._actor._actor_id.hex()).get("Pid"))

    def end(self) -> None:
        ray.kill(self._actor)
        if self._group is not None:
            remove_placement_group(self._group)


class KnowledgePool:
    """Engines as Ray actors: started when shards need them, ended on exit."""

    def __init__(
        self,
        settings: LLMSettings,
        sampling: SamplingSettings,
        placement: Placement,
        model: Path | str | ServerModel,
        ledger: Ledger,
        engine: type = LLMEngine,
    ) -> None:
        self._settings, self._sampling, self._placement = settings, sampling, placement
        self._model, self._ledger, self._engine_class = model, ledger, engine
        self._engines: list[_Engine] = []
        self._max_engines = placement.count
        self._some_loaded = False
        self._lost_while_loading = 0
        self._queue: deque[_Call] = deque()
        self._writer = ThreadPoolExecutor(_WRITES_AT_ONCE)
        self._writes: deque[Future[None]] = deque()

    def __enter__(self) -> KnowledgePool:
        return self

    def __exit__(self, *_: object) -> None:
        while self._engines:
            self._engines.pop().end()
        self._writer.shutdown()  # writes what was answered, also after an error

    def answer(self, shards: Iterable[Shard], on_shard: OnShard) -> None:
        """Write the answers of every shard to the ledger and call `on_shard` for each.

        Shards that the ledger has already are passed to `on_shard` too. `shards` is consumed as
        engines need work. A question that makes engines raise or die twice gets an answer with
        the reason in `failure`.

        Raises:
            RuntimeError: if no engine can be loaded, if engines fail on more than a few questions,
                or if no engine loads or answers for `timeout_minutes`.
            OutOfMemoryError: if Ray has ended engines for lack of memory more than once.
            OSError: if the ledger cannot write the answers.
        """
        source = iter(shards)
        minutes = self._settings.timeout_minutes
        if self._settings.source == "server":
            minutes = math.inf  # the client gives up by itself, and knows why
        waiting = Waiting("engines", self._placement.resources, minutes, self._settings)
        while True:
            self._dispatch(source, on_shard)
            # Only the oldest call of each engine: if it fails, it was the one that ran.
            awaited = {engine.calls[0][0]: engine for engine in self._engines if engine.calls}
            if not awaited and not self._queue:
                self._wait_for_writes(most_left=0)
                return
            awaited |= {engine.loading: engine for engine in self._engines if engine.loading}
            engine = awaited[waiting.first(list(awaited), self._describe_engines)]
            if engine.loading:
                self._on_engine_ready(engine, engine.loading)
            else:
                self._collect(engine, on_shard)
            self._replace_hanging_engines()

    def _replace_hanging_engines(self) -> None:
        """End engines that hang while others answer. Where all hang, `Waiting` gives up."""
        if self._settings.source == "server":
            return  # the client gives up by itself
        for engine in list(self._engines):
            seconds = time.monotonic() - engine.at_work_since
            if seconds < 60 * self._settings.timeout_minutes:
                continue
            if engine.loading and not engine.was_placed:
                # It may have waited for its place all the time.
                engine.at_work_since, engine.was_placed = time.monotonic(), engine.placed
                continue
            if not engine.loading and not engine.calls:
                continue
            doing = "loaded" if engine.loading else "worked on one shard"
            _log.warning("knowledge: an engine has %s for %.0f s and is replaced", doing, seconds)
            asked = engine.take_oldest()[1] if engine.calls else None
            self._remove_engine(engine)
            if asked:
                self._on_failure(asked, engine, GetTimeoutError("the engine hung"))

    def _dispatch(self, source: Iterator[Shard], on_shard: OnShard) -> None:
        """Start engines and send them calls for as long as any should get one."""
        while True:
            # The queue looks ahead as far as there are engines, to know when the end is near.
            while len(self._queue) < self._max_engines and (shard := next(source, None)):
                if self._ledger.has(shard):
                    on_shard(shard, self._ledger.read(shard), False, len(self._ready()))
                else:
                    self._queue.append(_Call(_Job(shard), tuple(range(len(shard.questions)))))
            calls = len(self._queue) + sum(len(engine.calls) for engine in self._engines)
            while len(self._engines) < min(self._max_engines, calls):
                arguments = (self._settings, self._model, self._placement.gpus > 0)
                self._engines.append(_Engine(self._engine_class, self._placement, *arguments))
            match = self._match()
            if match is None:
                return
            engine, call = match
            self._queue.remove(call)
            engine.ask(call, self._sampling)

    def _match(self) -> tuple[_Engine, _Call] | None:
        """The next call with the engine that should run it; None if no engine should get one."""
        ready = self._ready()
        # Near the end a call does not wait behind a busy engine: another will be idle sooner.
        enough = len(self._queue) >= self._max_engines and len(ready) == len(self._engines)
        most = max(_CALLS_PER_ENGINE, _concurrent_calls(self._engine_class))
        limit = most if enough else 1
        for engine in sorted(ready, key=lambda engine: len(engine.calls)):
            for call in self._queue if len(engine.calls) < limit else ():
                # A second engine must confirm a failure, as the first one may be broken.
                if call.failed_on is not engine or len(ready) == 1:
                    return engine, call
        return None

    def _describe_engines(self, needs: str) -> str:
        if isinstance(self._model, ServerModel):
            return describe_server(self._settings, self._model, self._sampling)
        loading = [engine for engine in self._engines if engine.loading]
        placed = sum(engine.placed for engine in loading)
        counts = {
            f"not placed ({needs})": len(loading) - placed,
            "loading": placed,
            "answering": sum(bool(engine.calls) for engine in self._engines),
        }
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count)

    def _ready(self) -> list[_Engine]:
        return [engine for engine in self._engines if not engine.loading]

    def _on_engine_ready(self, engine: _Engine, loaded: ray.ObjectRef) -> None:
        try:
            ray.get(loaded)
        except RayError as error:
            self._remove_engine(engine)
            # A node or process that went away says nothing about the model.
            if not getattr(error, "actor_init_failed", False):
                self._lost_while_loading += 1
                if self._lost_while_loading <= _MAX_LOST_WHILE_LOADING:
                    return
            self._max_engines -= 1
            if not self._some_loaded or not self._engines:
                if isinstance(error, OutOfMemoryError):
                    raise
                raise load_failure(self._settings.model, error) from None
        else:
            engine.loading, self._some_loaded = None, True

    def _collect(self, engine: _Engine, on_shard: OnShard) -> None:
        """Take the result of the engine's oldest call."""
        task, call = engine.take_oldest()
        try:
            answers = ray.get(task)
        except RayError as error:
            if _is_death(error):
                self._remove_engine(engine)
            elif isinstance(error, RayTaskError) and isinstance(error.cause, ServerFailure):
                raise error.cause from None  # no question is at fault
            self._on_failure(call, engine, error)
            return
        if call.bisection:
            call.bisection.succeeded += 1
            self._finish_probe(call.bisection)
            return
        job = call.job
        by_position = {i: Answer("", False, 0, reason) for i, reason in job.failed.items()}
        by_position |= dict(zip(call.positions, answers, strict=True))
        answers = [by_position[i] for i in range(len(by_position))]
        self._writes.append(self._writer.submit(self._ledger.write, job.shard, answers))
        self._wait_for_writes(most_left=_WRITES_AT_ONCE)
        on_shard(job.shard, answers, True, len(self._ready()))

    def _wait_for_writes(self, most_left: int) -> None:
        """Wait until only so many writes are under way. Raises OSError if one has failed."""
        while len(self._writes) > most_left or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()

    def _remove_engine(self, engine: _Engine) -> None:
        """End an engine, dead or alive, and put the calls that it did not run back in the queue."""
        self._engines.remove(engine)
        engine.end()
        self._queue.extendleft(call for _, call in reversed(engine.calls))

    def _on_failure(self, call: _Call, engine: _Engine, error: RayError) -> None:
        """Retry the call that failed while it ran, or search it for the question at fault."""
        call.failures, call.failed_on = call.failures + 1, engine
        confirmed = call.failures == _FAILURES_TO_CONFIRM
        job, bisection = call.job, call.bisection
        if confirmed and isinstance(error, OutOfMemoryError):
            raise error  # not the fault of a question
        if bisection is None:
            if confirmed or not _is_death(error):
                self._bisect(job, engine, error)
            else:
                self._queue.appendleft(call)
        elif len(call.positions) > 1:
            self._add_probes(bisection, _halves(call.positions), engine)
            self._finish_probe(bisection)
        elif bisection.halving and not confirmed:
            self._queue.appendleft(call)
        else:
            if bisection.halving:
                job.failed[call.positions[0]] = _reason(error)
            self._finish_probe(bisection)

    def _bisect(self, job: _Job, engine: _Engine, error: RayError) -> None:
        if job.inconclusive_bisections == _MAX_INCONCLUSIVE:
            explanation = "a shard fails as a whole, although each question can be answered alone"
            raise job.error(error, explanation) from error
        remaining = job.remaining()
        if not remaining:
            raise job.error(error, "the engine fails without any question") from error
        bisection = _Bisection(job, engine, error, failed_before=len(job.failed))
        # So few are soon asked one by one.
        bisection.halving = len(remaining) <= _MAX_FAILED
        if bisection.halving:
            probes = _halves(remaining)
        else:
            spread = ((len(remaining) - 1) * i // _MAX_FAILED for i in range(_MAX_FAILED + 1))
            probes = [remaining[i : i + 1] for i in spread]
        self._add_probes(bisection, probes, engine)

    def _add_probes(
        self, bisection: _Bisection, probes: list[tuple[int, ...]], engine: _Engine
    ) -> None:
        bisection.probes += len(probes)
        self._queue.extendleft(
            _Call(bisection.job, positions, bisection, failed_on=engine)
            for positions in reversed(probes)
        )

    def _finish_probe(self, bisection: _Bisection) -> None:
        """Count a probe as finished; after the last one, take the next step of the bisection."""
        job, error = bisection.job, bisection.error
        if len(job.failed) > failures_allowed(len(job.shard.questions)):
            explanation = f"the engine is broken: {len(job.failed)} questions of a shard fail alone"
            raise job.error(error, explanation) from error
        bisection.probes -= 1
        if bisection.probes:
            return
        if not bisection.succeeded and not bisection.halving:
            explanation = "the engine is broken: a shard and each of a few of its questions fail"
            raise job.error(error, explanation) from error
        if not bisection.halving:
            bisection.halving = True
            self._add_probes(bisection, _halves(job.remaining()), bisection.engine)
            return
        if len(job.failed) == bisection.failed_before:
            job.inconclusive_bisections += 1
            if bisection.engine in self._engines:  # it failed where others did not
                self._remove_engine(bisection.engine)
        self._queue.appendleft(_Call(job, job.remaining()))


def _halves(positions: tuple[int, ...]) -> list[tuple[int, ...]]:
    middle = len(positions) // 2
    return [half for half in (positions[:middle], positions[middle:]) if half]


def _concurrent_calls(engine: type) -> int:
    """How many shards an engine works on at once."""
    return int(getattr(engine, "concurrent_calls", 1))


def _is_death(error: RayError) -> bool:
    # After any other error of Ray's (node lost, out of memory, answers lost) the engine is useless.
    return not isinstance(error, RayTaskError)


def _reason(error: RayError) -> str:
    """One line that is the same each time the same question fails."""
    if not isinstance(error, RayTaskError):
        return "the engine died of it"
    text = str(error.cause).strip() or "no message"
    return f"{type(error.cause).__name__}: {text.splitlines()[0]}"


def cluster_dtype(engines: Placement, on_gpu: bool) -> Dtype:
    """The common dtype of all nodes of the cluster that can hold an engine.

    Raises:
        DescribedFailure: if a node does not answer.
        ray.exceptions.RayError: if a node goes away in the meantime.
    """
    needs = engines.resources
    chosen = [
        node
        for node in ray.nodes()
        if node["Alive"] and fits_labels(node["Labels"], engines.node_labels)
    ]
    nodes = [node for node in chosen if holds(node["Resources"], needs)]
    # Where all are too small, larger ones of this kind are to come.
    kind = {**needs, "CPU": 0.0, "GPU": min(1.0, engines.gpus)}
    nodes = nodes or [node for node in chosen if holds(node["Resources"], kind)]
    return common_dtype(ask_nodes(nodes, lambda _: native_dtype(on_gpu)))
