"""The knowledge stage: ask the language model, filter its answers into captions, and count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.stages.given_captions import knowledge_files
from orchestrator.stages.imported_answers import ImportedAnswers
from prompt_tuning.captions import Caption
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.category_facts import confirm_kinds, read_category_facts
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.questions import QuestionWriter
from prompt_tuning.knowledge.templates import FACTS, SENTENCES
from workers.knowledge.engine import LLMEngine
from workers.knowledge.ledger import Ledger, Shard, cut_shards
from workers.knowledge.pool import KnowledgePool
from workers.knowledge.server import ServerEngine, ServerModel, server_model

if TYPE_CHECKING:
    from orchestrator.console import StageProgress
    from orchestrator.plan.knowledge import KnowledgePlan
    from orchestrator.stages.features import StartProgress

# In questions. Large blocks, because an engine is half idle during the last answers of a shard; but
# on a CPU small enough that a killed run loses only seconds.
_BLOCK_SIZE_ON_CPU = 384
_BLOCK_SIZE_ON_GPU = 4096
# Of servers and files, which lose nothing between shards. The same for both, and whatever the
# concurrency, so that nothing is asked again when one of these changes.
_BLOCK_SIZE_ELSEWHERE = 64


def write_knowledge(
    plan: KnowledgePlan,
    start_progress: StartProgress,
    staging: Path,
    imported: Path | None = None,
) -> None:
    """Write the captions, every answer with its outcome, the category facts and a summary.

    `imported`: a file of answers, where `knowledge.llm.source` is `file`.

    Raises:
        OpenQuestions: if imported files leave questions without an answer.
    """
    writer, ledger = question_writer(plan), answer_ledger(plan)
    # Blocks have `block_size` questions on average, so most blocks are one shard.
    cut = partial(cut_shards, size=2 * writer.block_size, identity=plan.llm_identity)
    config, settings = plan.config, plan.config.knowledge
    with answering(plan, ledger, imported) as pool:
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
    caption_filter = CaptionFilter(plan.categories, config.captions, facts.kinds)
    with knowledge_files(plan, facts, staging) as (captions, answers, summary):
        for lists in (writer.facts(), writer.checks(claimed)):
            for question, answer in _pairs(cut(lists), ledger):
                summary.count_answer(question, answer)
        for shard in cut(writer.sentences(facts)):
            for question, answer in zip(shard.questions, ledger.read(shard), strict=True):
                summary.count_answer(question, answer)
                outcome = caption_filter.judge(question, answer)
                if isinstance(outcome, Caption):
                    captions.write_caption(
                        outcome,
                        question=question.line,
                        model=settings.llm.model,
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


def answer_ledger(plan: KnowledgePlan) -> Ledger:
    """Where the answers of all runs that share the plan's cache are."""
    return Ledger(plan.cache / "answers")


@contextmanager
def answering(
    plan: KnowledgePlan, ledger: Ledger, imported: Path | None = None
) -> Iterator[KnowledgePool | ImportedAnswers]:
    """Who answers the plan's questions: engines, a server, or imported files."""
    llm, sampling = plan.config.knowledge.llm, plan.config.knowledge.sampling
    if llm.source == "file":
        answers = ImportedAnswers(plan, ledger, imported)
        yield answers
        answers.keep()
        return
    engine: type = LLMEngine
    model: Path | str | ServerModel = plan.llm_path
    if llm.source == "server":
        engine, model = ServerEngine, server_model(llm)
    with KnowledgePool(llm, sampling, plan.engines, model, ledger, engine) as pool:
        yield pool


def question_writer(plan: KnowledgePlan) -> QuestionWriter:
    """The writer of the plan's questions, with a block size that suits its engines."""
    size = _BLOCK_SIZE_ON_GPU if plan.engines.gpus else _BLOCK_SIZE_ON_CPU
    if plan.config.knowledge.llm.source != "vllm":
        size = _BLOCK_SIZE_ELSEWHERE
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
