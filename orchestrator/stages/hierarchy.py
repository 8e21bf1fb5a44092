"""The hierarchy stage: the groups of categories that share context tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.hierarchy import Hierarchy, group_by_answers
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.storage import canonical_json
from workers.hierarchy import cluster_by_features
from workers.single_task import in_task

if TYPE_CHECKING:
    from orchestrator.plan.run import Plan

GROUPS = "hierarchy.json"


def write_hierarchy(plan: Plan, staging: Path) -> None:
    """Write the groups that the config gives, or cluster the categories by answers or features."""
    hierarchy, settings = plan.groups, plan.config.hierarchy
    sizes = settings.coarse, settings.fine
    if settings.groups == "llm":
        facts = CategoryFacts.model_validate_json(plan.knowledge.facts_file.read_bytes())
        given = facts, plan.categories, *sizes
        hierarchy = in_task("clustering", 0, plan.resources.threads(), group_by_answers, *given)
    elif hierarchy is None:
        named = plan.config.vlm, plan.cache, plan.categories, *sizes
        hierarchy = in_task(
            "clustering",
            1 if plan.resources.gpus else 0,
            plan.resources.threads(),
            cluster_by_features,
            *named,
        )
    (staging / GROUPS).write_text(canonical_json(asdict(hierarchy)), "utf-8")


def read_hierarchy(plan: Plan) -> Hierarchy:
    groups = json.loads((plan.hierarchy.folder / GROUPS).read_bytes())
    return Hierarchy(**{name: tuple(values) for name, values in groups.items()})
