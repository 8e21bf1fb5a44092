"""The clustering of categories, as a Ray task runs it."""

from __future__ import annotations

from pathlib import Path

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.hierarchy import Hierarchy, cluster_groups
from prompt_tuning.tuning.prompts import anchor_features
from workers.loaded_vlm import loaded_vlm


def cluster_by_features(
    vlm: VLMSettings, cache: Path, categories: CategoryList, coarse: int, fine: int
) -> Hierarchy:
    """Groups of categories whose names have similar text features."""
    texts = anchor_features(loaded_vlm(vlm, cache), categories)
    unit = (texts / texts.norm(dim=-1, keepdim=True)).cpu().numpy()
    return cluster_groups(unit, categories, coarse, fine)
