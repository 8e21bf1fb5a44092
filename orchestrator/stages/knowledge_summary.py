"""The counts that the knowledge stage writes, and the names of its files."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from prompt_tuning.captions import Caption
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.knowledge.dialogue import Answer, Question

if TYPE_CHECKING:
    from orchestrator.plan.knowledge import KnowledgePlan

CAPTIONS = "captions.parquet"
ANSWERS = "answers.parquet"
FACTS_FILE = "lists.json"
SUMMARY = "summary.json"
RESULTS = (CAPTIONS, ANSWERS, FACTS_FILE, SUMMARY)

_MAX_QUARANTINED_LISTED = 20


def read_summary(plan: KnowledgePlan) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((plan.stage.folder / SUMMARY).read_bytes())
    return summary


class KnowledgeSummary:
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
        if nothing was asked. `source`: who answered. `repeats`: whether the same machine would
        write the same bytes; that is not promised for servers and files, nor for GPUs without
        `knowledge.llm.deterministic`.
        """
        knowledge = self._plan.config.knowledge
        asked, by_engines = knowledge.questions.asks_something, knowledge.llm.source == "vllm"
        on_gpus = self._plan.engines.gpus > 0
        return {
            "source": knowledge.llm.source if asked else None,
            "model": knowledge.llm.model if asked else None,
            "dtype": knowledge.llm.dtype if asked and by_engines else None,
            "repeats": not asked or (by_engines and (not on_gpus or knowledge.llm.deterministic)),
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
