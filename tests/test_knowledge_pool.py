"""A real vLLM engine on a tiny checkpoint inside real Ray actors."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from tiny_llm import write_tiny_llm

from orchestrator.cluster import connect, disconnect
from prompt_tuning.captions import Answer
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.questions import Question, QuestionSettings, QuestionWriter
from workers.knowledge_pool import KnowledgePool, Placement
from workers.ledger import Ledger, Shard
from workers.llm_engine import EngineSettings, SamplingSettings

CATEGORIES = CategoryList(
    categories=tuple(Category(name=name) for name in ("dog", "bicycle", "violin"))
)
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=24)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("tiny_llm"))


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    connect()
    yield
    disconnect()


def questions(per_category: int) -> list[Question]:
    settings = QuestionSettings(per_category=per_category, relationships=0)
    return list(QuestionWriter(CATEGORIES, settings).specific_questions(["colour", "size"]))


def pool(model: Path, ledger: Path, shard_size: int) -> KnowledgePool:
    settings = EngineSettings(model=str(model), max_model_len=1024, max_num_seqs=16)
    placement = Placement(engines=1, cpus=2, gpus=0)
    identity = {"model": "tiny"}
    return KnowledgePool(settings, SAMPLING, placement, model, identity, shard_size, Ledger(ledger))


def test_answers_are_kept_and_repeat(tiny_llm: Path, tmp_path: Path) -> None:
    asked = questions(8)
    told: list[bool] = []

    def on_shard(shard: Shard, answers: list[Answer], fresh: bool) -> None:
        told.append(fresh)

    with pool(tiny_llm, tmp_path / "one", shard_size=10) as engines:
        first = engines.answers(asked, on_shard)
    assert told == [True] * 3
    assert [question for question, _ in first] == asked
    assert all(answer.tokens > 0 for _, answer in first)
    assert len({answer.text for _, answer in first}) > 12, "each question has a seed of its own"

    told.clear()
    with pool(tiny_llm, tmp_path / "one", shard_size=10) as engines:
        again = engines.answers(asked, on_shard)
    assert told == [False] * 3
    assert again == first

    # Another order of work: the last shard is asked first, and alone.
    with pool(tiny_llm, tmp_path / "two", shard_size=10) as engines:
        last = engines.answers(asked[20:], on_shard)
        whole = engines.answers(asked, on_shard)
    assert whole == first
    assert last == first[20:]


def test_killed_engine_is_replaced(tiny_llm: Path, tmp_path: Path) -> None:
    asked = questions(40)
    fresh_pids: list[int] = []

    def kill_first_engine() -> None:
        while not fresh_pids:
            for process in psutil.process_iter(["cmdline"]):
                if "ray::LLMEngine.answer" in " ".join(process.info["cmdline"] or []):
                    fresh_pids.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_first_engine, daemon=True)
    killer.start()
    with pool(tiny_llm, tmp_path / "killed", shard_size=40) as engines:
        disturbed = engines.answers(asked, lambda *_: None)
    killer.join(timeout=1)
    assert fresh_pids, "the engine was never seen at work"
    with pool(tiny_llm, tmp_path / "calm", shard_size=40) as engines:
        calm = engines.answers(asked, lambda *_: None)
    assert disturbed == calm


def test_a_model_that_cannot_be_loaded_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}', "utf-8")
    with (
        pool(tmp_path, tmp_path / "ledger", shard_size=4) as engines,
        pytest.raises(RuntimeError, match=r"^knowledge.llm.model .* cannot be loaded by vLLM: \S"),
    ):
        engines.answers(questions(2), lambda *_: None)
