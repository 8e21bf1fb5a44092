"""The knowledge stage of a run that asks no language model: given captions and templates alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from orchestrator.stages.knowledge_summary import (
    ANSWERS,
    CAPTIONS,
    FACTS_FILE,
    SUMMARY,
    KnowledgeSummary,
)
from prompt_tuning.captions import CaptionWriter
from prompt_tuning.knowledge.category_facts import read_category_facts
from prompt_tuning.parquet_writer import RowWriter
from prompt_tuning.storage import canonical_json

if TYPE_CHECKING:
    from orchestrator.plan.knowledge import KnowledgePlan

ANSWER_COLUMNS = pa.schema([(name, pa.string()) for name in ("kind", "question", "answer", "fate")])


def write_given_knowledge(plan: KnowledgePlan, staging: Path) -> None:
    """Write the files that `write_knowledge` writes, as they are when nothing was asked."""
    attributes = plan.config.knowledge.questions.attributes
    facts = read_category_facts(plan.categories, [], attributes)
    summary = KnowledgeSummary(plan, facts)
    with CaptionWriter(staging / CAPTIONS, plan.categories) as captions:
        write_given_captions(plan, captions, summary)
    with RowWriter(staging / ANSWERS, ANSWER_COLUMNS):
        pass
    (staging / FACTS_FILE).write_text(facts.model_dump_json(), "utf-8")
    (staging / SUMMARY).write_text(canonical_json(summary.as_json()), "utf-8")


def write_given_captions(
    plan: KnowledgePlan, captions: CaptionWriter, summary: KnowledgeSummary
) -> None:
    """Write and count the captions that no language model writes."""
    for caption in plan.given:
        captions.write_caption(caption)
        summary.count_caption(caption)
