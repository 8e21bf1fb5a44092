"""The pool of engines: answers what the ledger does not have yet, whatever dies on the way.

The driver owns one loop: it hands calls to engines, waits for the call that each of them is at, and
puts back in the queue what failed. A shard that fails is hunted through for the questions that no
engine can answer. The answers of a hunt's probes are thrown away and the rest of the shard runs
again in one call, so its bytes do not depend on what died.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prompt_tuning.knowledge.dialogue import Answer
from workers.knowledge.engine import EngineSettings, LLMEngine, SamplingSettings, load_failure
from workers.knowledge.ledger import Ledger, Shard
from workers.waiting import Waiting

# A shard that is in the ledger, its answers, whether they are fresh, and the engines alive.
OnShard = Callable[[Shard, list[Answer], bool, int], None]

# The one that runs, and one that waits behind it so that the engine need not wait for the driver.
_CALLS_IN_FLIGHT = 2
# Once may be chance: a node that went, an engine that had leaked.
_FAILURES_TO_BELIEVE = 2
# Hunts that find nobody guilty, after which a shard is given up and the run with it.
_FRUITLESS_HUNTS = 2
_LOST_ALLOWED = 2
# As many questions of a shard may fail, or a tenth of them if that is more.
_GUILTY_ALLOWED = 3
# Of a pool's custom resource an engine takes next to nothing: it says where, not how many.
_OF_POOL = 0.001


@dataclass(frozen=True)
class Placement:
    """How many engines run, each on how much, and on which nodes: those of a pool, or any."""

    engines: int
    cpus: int
    gpus: int
    pool: str | None = None

    @property
    def needs(self) -> dict[str, float]:
        """What each engine asks for, by Ray's names."""
        pool = {self.pool: _OF_POOL} if self.pool else {}
        return {"CPU": self.cpus, "GPU": self.gpus, **pool}


@dataclass(eq=False)
class _Job:
    """A shard on its way to the ledger; `guilty`: why questions (by place) have no answer."""

    shard: Shard
    guilty: dict[int, str] = field(default_factory=dict)
    fruitless_hunts: int = 0

    def innocent(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.shard.questions)) if i not in self.guilty)

    def failure(self, error: RayError, what: str) -> RuntimeError:
        first = self.shard.questions[0].line
        cause = str(error).strip().splitlines()[-1] if _is_death(error) else _reason(error)
        return RuntimeError(f"knowledge: {cause} ({what}; its first question: {first!r})")


@dataclass(eq=False)
class _Hunt:
    """A search for guilty questions: a few alone, to see if anything works, then by halves."""

    job: _Job
    engine: _Engine
    error: RayError
    guilty_before: int
    by_halves: bool = False
    probes_out: int = 0
    passed: int = 0


@dataclass(eq=False)
class _Call:
    """Questions of a shard (by place) for one engine: all the innocent ones, or a probe."""

    job: _Job
    places: tuple[int, ...]
    hunt: _Hunt | None = None
    failures: int = 0
    failed_on: _Engine | None = None


class _Engine:
    """An actor, and with several GPUs the placement group that keeps them on one node."""

    def __init__(self, engine: type, placement: Placement, *arguments: Any) -> None:
        self._group = None
        strategy: Any = "SPREAD"
        needs = placement.needs
        if placement.gpus > 1:
            self._group = placement_group([needs])
            strategy = PlacementGroupSchedulingStrategy(self._group)
        actor: Any = ray.remote(engine).options(
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU"),
            resources=needs,
            scheduling_strategy=strategy,
        )
        self._actor: Any = actor.remote(*arguments)
        self.loading: ray.ObjectRef | None = self._actor.__ray_ready__.remote()
        self.calls: deque[tuple[ray.ObjectRef, _Call]] = deque()

    def ask(self, call: _Call, sampling: SamplingSettings) -> None:
        questions = [call.job.shard.questions[place] for place in call.places]
        self.calls.append((self._actor.answer.remote(questions, sampling), call))

    @property
    def placed(self) -> bool:
        """Whether a node has taken it: it has a process then."""
        return bool(ray._private.state.actors(self._actor._actor_id.hex()).get("Pid"))

    def end(self) -> None:
        ray.kill(self._actor)
        if self._group is not None:
            remove_placement_group(self._group)


class KnowledgePool:
    """Engines as Ray actors, started when shards need them and gone on exit.

    `engine`: a class with the constructor and the `answer` of `LLMEngine`.
    """

    def __init__(
        self,
        settings: EngineSettings,
        sampling: SamplingSettings,
        placement: Placement,
        model: Path | str,
        ledger: Ledger,
        engine: type = LLMEngine,
    ) -> None:
        self._settings, self._sampling, self._placement = settings, sampling, placement
        self._model, self._ledger, self._engine_class = model, ledger, engine
        self._engines: list[_Engine] = []
        self._wanted = placement.engines
        self._some_loaded = False
        self._lost_while_loading = 0
        self._queue: deque[_Call] = deque()

    def __enter__(self) -> KnowledgePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._engines:
            self._engines.pop().end()

    def answer(self, shards: Iterable[Shard], on_shard: OnShard) -> None:
        """Get every shard into the ledger and tell `on_shard` of each, known ones too.

        Shards are taken as engines need them. A question that makes engines raise or die, and
        that twice, is published as an answer that names its `failure`.

        Raises:
            RuntimeError: when no engine can be loaded, engines fail on more than a few questions,
                or none answers or loads for `timeout_minutes`.
            OutOfMemoryError: when Ray has ended engines for lack of memory more than once.
            OSError: when the ledger cannot keep the answers.
        """
        source = iter(shards)
        waiting = Waiting("engines", self._placement.needs, self._settings.timeout_minutes)
        while True:
            self._hand_out(source, on_shard)
            # Of each engine the oldest call: if it fails, it is the one that was running.
            awaited = {engine.calls[0][0]: engine for engine in self._engines if engine.calls}
            if not awaited and not self._queue:
                return
            awaited |= {engine.loading: engine for engine in self._engines if engine.loading}
            engine = awaited[waiting.first(list(awaited), self._describe_engines)]
            if engine.loading:
                self._welcome(engine, engine.loading)
            else:
                self._collect(engine, on_shard)

    def _hand_out(self, source: Iterator[Shard], on_shard: OnShard) -> None:
        while True:
            # Only by looking a little ahead can it be known that the end is near.
            while len(self._queue) < self._wanted and (shard := next(source, None)):
                if self._ledger.has(shard):
                    on_shard(shard, self._ledger.read(shard), False, len(self._ready()))
                else:
                    self._queue.append(_Call(_Job(shard), tuple(range(len(shard.questions)))))
            calls = len(self._queue) + sum(len(engine.calls) for engine in self._engines)
            while len(self._engines) < min(self._wanted, calls):
                arguments = (self._settings, self._model, self._placement.gpus > 0)
                self._engines.append(_Engine(self._engine_class, self._placement, *arguments))
            match = self._match()
            if match is None:
                return
            engine, call = match
            self._queue.remove(call)
            engine.ask(call, self._sampling)

    def _match(self) -> tuple[_Engine, _Call] | None:
        """The next call and who gets it, None while nobody should."""
        ready = self._ready()
        # Nobody waits behind a busy engine for whom another will soon be idle.
        enough = len(self._queue) >= self._wanted and len(ready) == len(self._engines)
        room = _CALLS_IN_FLIGHT if enough else 1
        for engine in sorted(ready, key=lambda engine: len(engine.calls)):
            for call in self._queue if len(engine.calls) < room else ():
                # Else a broken engine would be the only witness against a question.
                if call.failed_on is not engine or len(ready) == 1:
                    return engine, call
        return None

    def _describe_engines(self, places: str) -> str:
        loading = [engine for engine in self._engines if engine.loading]
        placed = sum(engine.placed for engine in loading)
        counts = {
            f"not placed ({places})": len(loading) - placed,
            "loading": placed,
            "answering": sum(bool(engine.calls) for engine in self._engines),
        }
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count)

    def _ready(self) -> list[_Engine]:
        return [engine for engine in self._engines if not engine.loading]

    def _welcome(self, engine: _Engine, loaded: ray.ObjectRef) -> None:
        try:
            ray.get(loaded)
        except RayError as error:
            self._dismiss(engine)
            # A node or process that has gone meanwhile says nothing of the model.
            if not getattr(error, "actor_init_failed", False):
                self._lost_while_loading += 1
                if self._lost_while_loading <= _LOST_ALLOWED:
                    return
            self._wanted -= 1
            if not self._some_loaded or not self._engines:
                if isinstance(error, OutOfMemoryError):
                    raise
                raise load_failure(self._settings, error) from None
        else:
            engine.loading, self._some_loaded = None, True

    def _collect(self, engine: _Engine, on_shard: OnShard) -> None:
        task, call = engine.calls.popleft()
        try:
            answers = ray.get(task)
        except RayError as error:
            if _is_death(error):
                self._dismiss(engine)
            self._put_back(call, engine, error)
            return
        if call.hunt:
            call.hunt.passed += 1
            self._end_probe(call.hunt)
            return
        job = call.job
        by_place = {place: Answer("", False, 0, why) for place, why in job.guilty.items()}
        by_place |= dict(zip(call.places, answers, strict=True))
        answers = [by_place[place] for place in range(len(by_place))]
        self._ledger.write(job.shard, answers)
        on_shard(job.shard, answers, True, len(self._ready()))

    def _dismiss(self, engine: _Engine) -> None:
        """End an engine, dead or not; what waited there goes back, for it did not run."""
        self._engines.remove(engine)
        engine.end()
        self._queue.extendleft(call for _, call in reversed(engine.calls))

    def _put_back(self, call: _Call, engine: _Engine, error: RayError) -> None:
        """Decide what follows from the failure of a call that was running."""
        call.failures, call.failed_on = call.failures + 1, engine
        believed = call.failures == _FAILURES_TO_BELIEVE
        job, hunt = call.job, call.hunt
        if believed and isinstance(error, OutOfMemoryError):
            raise error  # no question is to blame
        if hunt is None:
            if believed or not _is_death(error):
                self._hunt(job, engine, error)
            else:
                self._queue.appendleft(call)
        elif len(call.places) > 1:
            self._probe(hunt, _halves(call.places), engine)
            self._end_probe(hunt)
        elif hunt.by_halves and not believed:
            self._queue.appendleft(call)
        else:
            if hunt.by_halves:
                job.guilty[call.places[0]] = _reason(error)
            self._end_probe(hunt)

    def _hunt(self, job: _Job, engine: _Engine, error: RayError) -> None:
        if job.fruitless_hunts == _FRUITLESS_HUNTS:
            what = "a shard cannot be answered whole, although each of its questions can alone"
            raise job.failure(error, what) from error
        hunt = _Hunt(job, engine, error, guilty_before=len(job.guilty))
        rest = job.innocent()
        if not rest:
            raise job.failure(error, "the engine fails at no question at all") from error
        hunt.by_halves = len(rest) <= _GUILTY_ALLOWED  # so few are soon asked one by one
        apart = [(len(rest) - 1) * i // _GUILTY_ALLOWED for i in range(_GUILTY_ALLOWED + 1)]
        parts = _halves(rest) if hunt.by_halves else [rest[i : i + 1] for i in apart]
        self._probe(hunt, parts, engine)

    def _probe(self, hunt: _Hunt, parts: list[tuple[int, ...]], engine: _Engine) -> None:
        hunt.probes_out += len(parts)
        self._queue.extendleft(
            _Call(hunt.job, part, hunt, failed_on=engine) for part in reversed(parts)
        )

    def _end_probe(self, hunt: _Hunt) -> None:
        """Count a probe as done; the last one leads to the hunt's next step."""
        job = hunt.job
        if len(job.guilty) > max(_GUILTY_ALLOWED, len(job.shard.questions) // 10):
            what = f"{len(job.guilty)} questions of one shard fail alone, so the engine is broken"
            raise job.failure(hunt.error, what) from hunt.error
        hunt.probes_out -= 1
        if hunt.probes_out:
            return
        if not hunt.passed and not hunt.by_halves:
            what = "a shard and each of a few of its questions fail, so the engine is broken"
            raise job.failure(hunt.error, what) from hunt.error
        if not hunt.by_halves:
            hunt.by_halves = True
            self._probe(hunt, _halves(job.innocent()), hunt.engine)
            return
        if len(job.guilty) == hunt.guilty_before:
            job.fruitless_hunts += 1
            if hunt.engine in self._engines:  # it raised at what the others could answer
                self._dismiss(hunt.engine)
        self._queue.appendleft(_Call(job, job.innocent()))


def _halves(places: tuple[int, ...]) -> list[tuple[int, ...]]:
    middle = len(places) // 2
    return [part for part in (places[:middle], places[middle:]) if part]


def _is_death(error: RayError) -> bool:
    # Whatever else Ray reports (node gone, memory monitor, answers lost), the engine is of no use.
    return not isinstance(error, RayTaskError)


def _reason(error: RayError) -> str:
    """One line that is the same whenever the same question fails."""
    if not isinstance(error, RayTaskError):
        return "the engine died of it"
    text = str(error.cause).strip() or "no message"
    return f"{type(error.cause).__name__}: {text.splitlines()[0]}"
