"""The knowledge stage: ask the language model, filter its answers into captions, and count."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.console import StageProgress, status
from orchestrator.plan.knowledge import CAPTIONS, KnowledgePlan
from prompt_tuning.captions import Caption, CaptionWriter
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.category_facts import CategoryFacts, confirm_kinds, read_category_facts
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.questions import QuestionWriter
from prompt_tuning.knowledge.templates import FACTS, SENTENCES
from prompt_tuning.parquet_writer import RowWriter
from prompt_tuning.storage import canonical_json
from workers.knowledge import embedded_llm
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.pool import KnowledgePool

SUMMARY = "summary.json"
_ANSWERS = "answers.parquet"
_FACTS = "lists.json"
RESULTS = (CAPTIONS, _ANSWERS, _FACTS, SUMMARY)

# Questions. Large, because the last answers of a shard leave an engine half idle; on a CPU small
# enough that a killed run loses only seconds.
_BLOCK_SIZE_ON_CPU = 384
_BLOCK_SIZE_ON_GPU = 4096
_MAX_QUARANTINED_LISTED = 20


def write_knowledge(plan: KnowledgePlan, console: Console, staging: Path) -> None:
    """Write the captions, every answer with its outcome, the category facts and a summary."""
    writer, ledger = question_writer(plan), Ledger(plan.cache / "answers")
    # Blocks have `block_size` questions on average, so most blocks are one shard.
    cut = partial(cut_shards, size=2 * writer.block_size, identity=plan.llm_identity)
    settings = plan.config.knowledge
    if settings.questions.asks_something:
        _prepare_model(plan, console)
        connect(plan.resources.cpus, plan.resources.gpus)
    with KnowledgePool(
        settings.llm, settings.sampling, plan.engines, plan.llm_path, ledger
    ) as pool:
        with StageProgress(console, "category facts", writer.count(FACTS)) as progress:
            pool.answer(cut(writer.facts()), _ShardProgress(progress).on_shard)
        answered = _pairs(cut(writer.facts()), ledger)
        claimed = read_category_facts(plan.categories, answered, settings.questions.attributes)
        with StageProgress(console, "kinds", writer.count_checks(claimed)) as progress:
            pool.answer(cut(writer.checks(claimed)), _ShardProgress(progress).on_shard)
        checked = _pairs(cut(writer.checks(claimed)), ledger)
        facts = confirm_kinds(claimed, plan.categories, checked)
        with StageProgress(console, "captions", writer.count(SENTENCES)) as progress:
            pool.answer(cut(writer.sentences(facts)), _ShardProgress(progress).on_shard)
    (staging / _FACTS).write_text(facts.model_dump_json(), "utf-8")
    summary = _Summary(plan, facts)
    for lists in (writer.facts(), writer.checks(claimed)):
        for question, answer in _pairs(cut(lists), ledger):
            summary.count_answer(question, answer)
    _write_captions(plan, facts, cut(writer.sentences(facts)), ledger, summary, staging)
    (staging / SUMMARY).write_text(canonical_json(summary.as_json()), "utf-8")


def question_writer(plan: KnowledgePlan) -> QuestionWriter:
    """The writer of the plan's questions, with a block size that suits its engines."""
    size = _BLOCK_SIZE_ON_GPU if plan.engines.gpus else _BLOCK_SIZE_ON_CPU
    return QuestionWriter(plan.categories, plan.config.knowledge.questions, plan.templates, size)


def read_category_facts_file(plan: KnowledgePlan) -> CategoryFacts:
    """The category facts that the stage wrote."""
    return CategoryFacts.model_validate_json((plan.stage.folder / _FACTS).read_bytes())


def read_summary(plan: KnowledgePlan) -> dict[str, Any]:
    """The counts that the stage wrote."""
    summary: dict[str, Any] = json.loads((plan.stage.folder / SUMMARY).read_bytes())
    return summary


def _prepare_model(plan: KnowledgePlan, console: Console) -> None:
    """Assemble the embedded model once, before engines need it, and show its terms of use."""
    if plan.config.knowledge.llm.model != embedded_llm.EMBEDDED_MODEL:
        return
    folder = Path(plan.llm_path)
    if folder.exists():  # a damaged one is assembled again by the engine
        return
    console.print(embedded_llm.TERMS)
    with status(console, "assembling the embedded language model (once, about half a minute) …"):
        embedded_llm.assemble(folder)


def _pairs(shards: Iterator[Shard], ledger: Ledger) -> Iterator[tuple[Question, Answer]]:
    for shard in shards:
        yield from zip(shard.questions, ledger.read(shard), strict=True)


class _ShardProgress:
    """Shows how many questions are answered, the tokens per second and the number of engines."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress, self._tokens = progress, 0

    def on_shard(self, shard: Shard, answers: list[Answer], new: bool, engines: int) -> None:
        if new:
            self._tokens += sum(answer.tokens for answer in answers)
        speed = f"{self._tokens / self._progress.elapsed():.0f} tokens/s"
        plural = "" if engines == 1 else "s"
        self._progress.advance(len(shard.questions), f"{speed}, {engines} engine{plural}")


def _write_captions(
    plan: KnowledgePlan,
    facts: CategoryFacts,
    shards: Iterator[Shard],
    ledger: Ledger,
    summary: _Summary,
    staging: Path,
) -> None:
    """Write the captions (given ones first) and every answer with its outcome."""
    config = plan.config
    captions = CaptionFilter(plan.categories, config.captions, facts.kinds)
    columns = {name: pa.string() for name in ("kind", "question", "answer", "fate")}
    with (
        CaptionWriter(staging / CAPTIONS, plan.categories) as kept,
        RowWriter(staging / _ANSWERS, pa.schema(columns)) as answers,
    ):
        for caption in plan.given:
            kept.write_caption(caption)
            summary.count_caption(caption)
        for shard in shards:
            for question, answer in zip(shard.questions, ledger.read(shard), strict=True):
                outcome = captions.judge(question, answer)
                summary.count_answer(question, answer)
                if isinstance(outcome, Caption):
                    kept.write_caption(
                        outcome,
                        question=question.line,
                        model=config.knowledge.llm.model,
                        seed=question.seed,
                        key=shard.key,
                    )
                    summary.count_caption(outcome)
                    fate = "kept"
                else:
                    fate = outcome
                    summary.dropped[fate] += 1
                answers.write(
                    kind=question.kind, question=question.line, answer=answer.text, fate=fate
                )


class _Summary:
    """Counts questions, answers and captions."""

    def __init__(self, plan: KnowledgePlan, facts: CategoryFacts) -> None:
        self._plan, self._facts = plan, facts
        self.dropped: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._per_category = [0] * len(plan.categories)
        self._tokens = 0
        self._quarantined: list[dict[str, str]] = []
        self._failures = 0

    def count_answer(self, question: Question, answer: Answer) -> None:
        self._asked[question.kind] += 1
        self._tokens += answer.tokens
        if answer.failure is not None:
            self._failures += 1
            if self._failures <= _MAX_QUARANTINED_LISTED:
                self._quarantined.append({"question": question.line, "reason": answer.failure})

    def count_caption(self, caption: Caption) -> None:
        self._kept[caption.kind] += 1
        for label in caption.labels:
            self._per_category[label] += 1

    def as_json(self) -> dict[str, Any]:
        """The counts as JSON values.

        `quarantined`: the first of the questions that `not_answered` counts. `model`, `dtype`: null
        if nothing was asked.
        """
        knowledge = self._plan.config.knowledge
        return {
            "model": knowledge.llm.model if knowledge.questions.asks_something else None,
            "dtype": knowledge.llm.dtype if knowledge.questions.asks_something else None,
            "asked": dict(self._asked),
            "kept": dict(self._kept),
            "dropped": dict(self.dropped),
            "not_answered": self._failures,
            "quarantined": self._quarantined,
            "captions_per_category": dict(
                zip(self._plan.categories.names, self._per_category, strict=True)
            ),
            "attributes": list(self._facts.attributes),
            "kinds": {name: kinds for name, kinds in self._facts.kinds.items() if kinds},
            "tokens": self._tokens,
        }
