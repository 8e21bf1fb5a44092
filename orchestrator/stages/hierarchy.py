"""The hierarchy stage: the groups of categories that share context tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.backbones import load_vlm
from prompt_tuning.hierarchy import Hierarchy, cluster_groups, group_by_answers
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.storage import canonical_json
from prompt_tuning.tuning.prompts import anchor_features

if TYPE_CHECKING:
    from orchestrator.plan.run import Plan

GROUPS = "hierarchy.json"


def write_hierarchy(plan: Plan, staging: Path) -> None:
    """Write the groups that the config gives, or cluster the categories by answers or features."""
    hierarchy, settings = plan.groups, plan.config.hierarchy
    if settings.groups == "llm":
        facts = CategoryFacts.model_validate_json(plan.knowledge.facts_file.read_bytes())
        hierarchy = group_by_answers(facts, plan.categories, settings.coarse, settings.fine)
    elif hierarchy is None:
        texts = anchor_features(load_vlm(plan.config.vlm, cache=plan.cache), plan.categories)
        unit = (texts / texts.norm(dim=-1, keepdim=True)).numpy()
        hierarchy = cluster_groups(unit, plan.categories, settings.coarse, settings.fine)
    (staging / GROUPS).write_text(canonical_json(asdict(hierarchy)), "utf-8")


def read_hierarchy(plan: Plan) -> Hierarchy:
    groups = json.loads((plan.hierarchy.folder / GROUPS).read_bytes())
    return Hierarchy(**{name: tuple(values) for name, values in groups.items()})
