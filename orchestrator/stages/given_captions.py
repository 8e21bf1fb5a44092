"""The knowledge stage without a language model: captions from files and templates only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from prompt_tuning.knowledge.category_facts import CategoryFacts, read_category_facts
from prompt_tuning.parquet_rows import RowWriter
from prompt_tuning.storage import canonical_json

if TYPE_CHECKING:
    from orchestrator.plan.knowledge import KnowledgePlan

_COLUMNS = pa.schema([(name, pa.string()) for name in ("kind", "question", "answer", "fate")])


def write_given_knowledge(plan: KnowledgePlan, staging: Path) -> None:
    """Write the files of the knowledge stage if there is nothing to ask."""
    attributes = plan.config.knowledge.questions.attributes
    with knowledge_files(plan, read_category_facts(plan.categories, [], attributes), staging):
        pass


@contextmanager
def knowledge_files(
    plan: KnowledgePlan, facts: CategoryFacts, staging: Path
) -> Iterator[tuple[CaptionWriter, RowWriter, KnowledgeSummary]]:
    """Write the files of the knowledge stage; the block adds answers and the captions from them."""
    summary = KnowledgeSummary(plan, facts)
    (staging / FACTS_FILE).write_text(facts.model_dump_json(), "utf-8")
    with (
        CaptionWriter(staging / CAPTIONS, plan.categories) as captions,
        RowWriter(staging / ANSWERS, _COLUMNS) as answers,
    ):
        for caption in plan.given:
            captions.write_caption(caption)
            summary.count_caption(caption)
        yield captions, answers, summary
    (staging / SUMMARY).write_text(canonical_json(summary.as_json()), "utf-8")
