"""The knowledge stage: ask the language model, keep what is worth training on, count the rest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from orchestrator.cluster import connect
from orchestrator.plan import Plan
from orchestrator.progress import StageProgress, status
from prompt_tuning.captions import (
    Answer,
    Caption,
    CaptionFilter,
    read_caption_file,
    write_captions,
)
from prompt_tuning.questions import KINDS, Question, QuestionWriter, parse_attributes
from prompt_tuning.store import canonical_json
from workers import embedded_llm
from workers.knowledge_pool import KnowledgePool
from workers.ledger import Ledger, Shard

CAPTIONS = "captions.parquet"
SUMMARY = "summary.json"

# Large, for the last answers of a shard keep an engine half idle; on a CPU small enough that a
# killed run loses seconds.
_SHARD_SIZE_ON_CPU = 192
_SHARD_SIZE_ON_GPU = 4096


def write_knowledge(plan: Plan, console: Console, staging: Path) -> None:
    """Fill the stage's folder: captions, every answer with its fate, and a summary of counts."""
    config = plan.config
    writer = QuestionWriter(plan.categories, config.knowledge.questions)
    if config.knowledge.questions.asks_something:
        _prepare_model(plan, console)
        connect(plan.resources.cpus, plan.resources.gpus)
    with _pool(plan) as pool:
        attribute_pairs = pool.answers(list(writer.attribute_questions()), lambda *_: None)
        attributes = parse_attributes(
            [answer.text for _, answer in attribute_pairs], config.knowledge.questions.attributes
        )
        questions = [*writer.specific_questions(attributes), *writer.relationship_questions()]
        with StageProgress(console, "knowledge", len(questions)) as progress:
            pairs = pool.answers(questions, _Rate(progress).on_shard)

    own = [
        caption
        for file in config.captions.files
        for caption in read_caption_file(Path(file), plan.categories)
    ]
    fates = CaptionFilter(plan.categories, config.captions).sort(pairs)
    captions = own + [fate for fate in fates if isinstance(fate, Caption)]
    write_captions(staging / CAPTIONS, captions)
    _write_answers(staging / "answers.parquet", pairs, fates)
    summary = {
        "model": config.knowledge.llm.model,
        "asked": {kind: sum(q.kind == kind for q, _ in attribute_pairs + pairs) for kind in KINDS},
        "kept": dict(Counter(caption.kind for caption in captions)),
        "dropped": dict(Counter(fate for fate in fates if isinstance(fate, str))),
        "captions_per_category": {
            name: sum(index in caption.labels for caption in captions)
            for index, name in enumerate(plan.categories.names)
        },
        "attributes": attributes,
        "tokens": sum(answer.tokens for _, answer in attribute_pairs + pairs),
    }
    (staging / SUMMARY).write_text(canonical_json(summary), "utf-8")


def _prepare_model(plan: Plan, console: Console) -> None:
    """Assemble the embedded model before engines ask for it; its terms are shown that once."""
    if plan.config.knowledge.llm.model != embedded_llm.EMBEDDED_MODEL:
        return
    folder = Path(plan.llm_path)
    if folder.exists():  # the engine puts it together again should it be damaged
        return
    console.print(embedded_llm.TERMS)
    with status(console, "assembling the embedded language model (once, about a minute) …"):
        embedded_llm.assemble(folder)


def _pool(plan: Plan) -> KnowledgePool:
    return KnowledgePool(
        plan.config.knowledge.llm,
        plan.config.knowledge.sampling,
        plan.engines,
        plan.llm_path,
        plan.llm_identity,
        _SHARD_SIZE_ON_GPU if plan.engines.gpus else _SHARD_SIZE_ON_CPU,
        Ledger(plan.cache / "answers"),
    )


class _Rate:
    """Tells the progress of shards, with the tokens a second over all engines."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress, self._tokens = progress, 0

    def on_shard(self, shard: Shard, answers: list[Answer], fresh: bool) -> None:
        if fresh:
            self._tokens += sum(answer.tokens for answer in answers)
        rate = self._tokens / self._progress.elapsed()
        self._progress.advance(len(shard.questions), f"{rate:.0f} tokens/s")


def _write_answers(
    path: Path, pairs: list[tuple[Question, Answer]], fates: list[Caption | str]
) -> None:
    """Every answer with what became of it: `kept`, or the reason why not."""
    rows = [
        {
            "kind": question.kind,
            "question": question.pattern.splitlines()[-1],
            "answer": answer.text,
            "fate": fate if isinstance(fate, str) else "kept",
        }
        for (question, answer), fate in zip(pairs, fates, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
