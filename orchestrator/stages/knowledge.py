"""The knowledge stage: ask the language model, filter its answers into captions, and count."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.stages.given_captions import ANSWER_COLUMNS, write_given_captions
from orchestrator.stages.knowledge_summary import (
    ANSWERS,
    CAPTIONS,
    FACTS_FILE,
    SUMMARY,
    KnowledgeSummary,
)
from prompt_tuning.captions import Caption, CaptionWriter
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.category_facts import CategoryFacts, confirm_kinds, read_category_facts
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.questions import QuestionWriter
from prompt_tuning.knowledge.templates import FACTS, SENTENCES
from prompt_tuning.parquet_writer import RowWriter
from prompt_tuning.storage import canonical_json
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.pool import KnowledgePool

if TYPE_CHECKING:
    from orchestrator.console import StageProgress
    from orchestrator.plan.knowledge import KnowledgePlan
    from orchestrator.stages.features import StartProgress

# Questions. Large, because the last answers of a shard leave an engine half idle; on a CPU small
# enough that a killed run loses only seconds.
_BLOCK_SIZE_ON_CPU = 384
_BLOCK_SIZE_ON_GPU = 4096


def write_knowledge(plan: KnowledgePlan, start_progress: StartProgress, staging: Path) -> None:
    """Write the captions, every answer with its outcome, the category facts and a summary."""
    writer, ledger = question_writer(plan), Ledger(plan.cache / "answers")
    # Blocks have `block_size` questions on average, so most blocks are one shard.
    cut = partial(cut_shards, size=2 * writer.block_size, identity=plan.llm_identity)
    settings = plan.config.knowledge
    with KnowledgePool(
        settings.llm, settings.sampling, plan.engines, plan.llm_path, ledger
    ) as pool:
        with start_progress("category facts", writer.count(FACTS)) as progress:
            pool.answer(cut(writer.facts()), _ShardProgress(progress).on_shard)
        answered = _pairs(cut(writer.facts()), ledger)
        claimed = read_category_facts(plan.categories, answered, settings.questions.attributes)
        with start_progress("kinds", writer.count_checks(claimed)) as progress:
            pool.answer(cut(writer.checks(claimed)), _ShardProgress(progress).on_shard)
        checked = _pairs(cut(writer.checks(claimed)), ledger)
        facts = confirm_kinds(claimed, plan.categories, checked)
        with start_progress("captions", writer.count(SENTENCES)) as progress:
            pool.answer(cut(writer.sentences(facts)), _ShardProgress(progress).on_shard)
    (staging / FACTS_FILE).write_text(facts.model_dump_json(), "utf-8")
    summary = KnowledgeSummary(plan, facts)
    for lists in (writer.facts(), writer.checks(claimed)):
        for question, answer in _pairs(cut(lists), ledger):
            summary.count_answer(question, answer)
    _write_captions(plan, facts, cut(writer.sentences(facts)), ledger, summary, staging)
    (staging / SUMMARY).write_text(canonical_json(summary.as_json()), "utf-8")


def question_writer(plan: KnowledgePlan) -> QuestionWriter:
    """The writer of the plan's questions, with a block size that suits its engines."""
    size = _BLOCK_SIZE_ON_GPU if plan.engines.gpus else _BLOCK_SIZE_ON_CPU
    return QuestionWriter(plan.categories, plan.config.knowledge.questions, plan.templates, size)


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
    summary: KnowledgeSummary,
    staging: Path,
) -> None:
    """Write the captions (given ones first) and every answer with its outcome."""
    config = plan.config
    captions = CaptionFilter(plan.categories, config.captions, facts.kinds)
    with (
        CaptionWriter(staging / CAPTIONS, plan.categories) as kept,
        RowWriter(staging / ANSWERS, ANSWER_COLUMNS) as answers,
    ):
        write_given_captions(plan, kept, summary)
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
