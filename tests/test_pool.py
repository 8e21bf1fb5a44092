"""A real vLLM engine on a tiny checkpoint inside real Ray actors."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from child_processes import child_processes
from tiny_llm import write_tiny_llm

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.knowledge.dialogue import Answer, Question
from workers.knowledge.engine import LLMEngine
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.llm_settings import LLMSettings, SamplingSettings
from workers.knowledge.pool import KnowledgePool
from workers.placement import Placement

SAMPLING = SamplingSettings(temperature=0.9, max_tokens=24)
LETHAL = "a question that kills"
FOUND_IN_CACHE = "found_in_cache.jsonl"
PATHS = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


class MortalEngine(LLMEngine):
    """An engine that some questions kill, without a word, as a kernel or want of memory would."""

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        if any(question.instruction == LETHAL for question in questions):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(questions, sampling)


class WaitsForAnother(LLMEngine):
    """Answers nothing until two of its kind are loaded, so that both have to."""

    def __init__(self, settings: LLMSettings, model: Path, on_gpu: bool) -> None:
        super().__init__(settings, model, on_gpu)
        self._model = model
        (model / f"loaded-{os.getpid()}").touch()

    def answer(self, questions: list[Question], sampling: SamplingSettings) -> list[Answer]:
        while len(list(self._model.glob("loaded-*"))) < 2:
            time.sleep(0.1)
        return super().answer(questions, sampling)


class CacheWatcher(LLMEngine):
    """Writes down how many tokens of each prompt vLLM finds in its prefix cache, a line a call."""

    def __init__(self, settings: LLMSettings, model: Path, on_gpu: bool) -> None:
        super().__init__(settings, model, on_gpu)
        generate, found_file = self._llm.generate, model / FOUND_IN_CACHE

        def watched(*arguments: Any, **options: Any) -> Any:
            outputs = generate(*arguments, **options)
            with found_file.open("a") as file:
                file.write(f"{json.dumps([output.num_cached_tokens for output in outputs])}\n")
            return outputs

        self._llm.generate = watched


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("tiny_llm"))


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))  # workers import this file
        connect(cpus=2, dashboard=False)
        yield
        disconnect()


def questions(count: int) -> list[Question]:
    heading = "Sentences about things, one a line."
    lines = [f"Sentence {i} about a {('dog', 'bicycle', 'violin')[i % 3]}:" for i in range(count)]
    return [
        Question(
            kind="specific",
            categories=(),
            words=(),
            instruction=line,
            pattern=f"{heading}\n{line}",
            shown=(),
            seed=i,
        )
        for i, line in enumerate(lines)
    ]


def shards(asked: list[Question], size: int, model: str = "tiny") -> list[Shard]:
    return list(cut_shards([asked], size, {"model": model}))


def pool(model: Path, ledger: Path, engines: int = 1, engine: type = LLMEngine) -> KnowledgePool:
    settings = LLMSettings(model=str(model), max_model_len=1024, max_num_seqs=16)
    placement = Placement(engines, cpus=1, gpus=0)
    return KnowledgePool(settings, SAMPLING, placement, model, Ledger(ledger), engine)


def answers(ledger: Path, of: list[Shard]) -> list[Answer]:
    return [answer for shard in of for answer in Ledger(ledger).read(shard)]


def contents(ledger: Path) -> dict[str, bytes]:
    """The bytes of what was published, by path."""
    return {str(f.relative_to(ledger)): f.read_bytes() for f in ledger.rglob("*") if f.is_file()}


def no_matter(*_: object) -> None: ...


WORK = shards(questions(120), size=40)


@pytest.fixture(scope="module")
def calm(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of `WORK`, answered by one engine that nothing disturbed."""
    ledger = tmp_path_factory.mktemp("calm")
    with pool(tiny_llm, ledger) as engines:
        engines.answer(WORK, no_matter)
    return ledger


LONG = replace(questions(1)[0], pattern="A dog. " * 200)
SPOILT = shards([*WORK[0].questions[:7], LONG, *WORK[0].questions[7:]], size=41)
ALONE = shards([LONG], size=1)
SAME_AS_FIRST = shards(list(WORK[0].questions), size=40, model="another")


@pytest.fixture(scope="module")
def again(
    tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, int, bool, int]]]:
    """The ledger of `WORK` by another engine in another order, the last shard first and alone, of
    `SPOILT` and `ALONE` between, and of `SAME_AS_FIRST` at the end; and what was reported of each
    shard of `WORK`."""
    ledger = tmp_path_factory.mktemp("again")
    reported: list[tuple[str, int, bool, int]] = []

    def on_shard(shard: Shard, given: list[Answer], fresh: bool, engines_alive: int) -> None:
        reported.append((shard.key, len(given), fresh, engines_alive))

    with pool(tiny_llm, ledger, engine=CacheWatcher) as engines:
        engines.answer(WORK[2:], on_shard)
        engines.answer([*SPOILT, *ALONE], no_matter)
        engines.answer(WORK[:2], on_shard)
        engines.answer(SAME_AS_FIRST, no_matter)
    return ledger, reported


def test_answers_are_kept_and_repeat(
    tiny_llm: Path, calm: Path, again: tuple[Path, list[tuple[str, int, bool, int]]]
) -> None:
    ledger, reported = again
    assert reported == [(shard.key, 40, True, 1) for shard in (WORK[2], WORK[0], WORK[1])]
    given = answers(ledger, WORK)
    assert all(answer.tokens > 0 and answer.failure is None for answer in given)
    assert len({answer.text for answer in given}) > 110, "each question has a seed of its own"
    there = contents(ledger)
    assert {path: there[path] for path in contents(calm)} == contents(calm)

    kept: list[tuple[str, bool, int]] = []

    def on_shard(shard: Shard, given: list[Answer], fresh: bool, engines_alive: int) -> None:
        kept.append((shard.key, fresh, engines_alive))

    with pool(tiny_llm, ledger) as engines:
        engines.answer(WORK, on_shard)
    assert kept == [(shard.key, False, 0) for shard in WORK]


def test_two_engines_write_the_same_bytes_as_one(
    tiny_llm: Path, calm: Path, tmp_path: Path
) -> None:
    with pool(tiny_llm, tmp_path, engines=2, engine=WaitsForAnother) as engines:
        engines.answer(WORK, no_matter)
    assert contents(tmp_path) == contents(calm)


def test_killed_engine_is_replaced(tiny_llm: Path, calm: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_first_engine() -> None:
        while not killed:
            for process in child_processes("ray::LLMEngine.answer"):
                killed.append(process.pid)
                process.kill()
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_first_engine, daemon=True)
    killer.start()
    with pool(tiny_llm, tmp_path) as engines:
        engines.answer(WORK, no_matter)
    killer.join(timeout=1)
    assert killed, "the engine was never seen at work"
    assert contents(tmp_path) == contents(calm)


def test_a_prompt_that_is_too_long_is_named_and_spoils_nothing(
    calm: Path, again: tuple[Path, list[tuple[str, int, bool, int]]]
) -> None:
    ledger, _ = again
    given = answers(ledger, SPOILT)
    failed = given.pop(7)
    assert failed.failure is not None
    assert re.match(r"VLLMValidationError: .* maximum context length is 1024", failed.failure)
    assert given == answers(calm, WORK[:1])
    assert answers(ledger, ALONE) == [failed]
    # They are asked after it, of the same engine.
    assert answers(ledger, WORK[:2]) == answers(calm, WORK[:2])


@pytest.mark.slow
def test_a_question_that_kills_is_named_and_spoils_nothing(
    tiny_llm: Path, calm: Path, tmp_path: Path
) -> None:
    lethal = replace(questions(1)[0], instruction=LETHAL)
    spoilt = shards([lethal, *questions(2)], size=3)
    with pool(tiny_llm, tmp_path, engine=MortalEngine) as engines:
        engines.answer([*spoilt, WORK[0]], no_matter)
    failed, *given = answers(tmp_path, spoilt)
    assert failed == Answer("", False, 0, failure="the engine died of it")
    assert all(answer.tokens > 0 for answer in given)
    assert answers(tmp_path, [WORK[0]]) == answers(calm, [WORK[0]])


@pytest.mark.usefixtures("again")
def test_each_shard_finds_an_empty_prefix_cache(tiny_llm: Path) -> None:
    calls = [json.loads(line) for line in (tiny_llm / FOUND_IN_CACHE).read_text().splitlines()]
    first, _, same_as_first = calls[-3:]
    assert first[0] == 0
    assert max(first) > 0, "questions of a shard find what they share"
    assert same_as_first == first


def test_a_model_that_cannot_be_loaded_ends_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}', "utf-8")
    with (
        pool(tmp_path, tmp_path / "ledger") as engines,
        pytest.raises(RuntimeError, match=r"^knowledge.llm.model: .*vLLM says: \S"),
    ):
        engines.answer(WORK, no_matter)
