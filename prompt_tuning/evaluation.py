"""The arms that are compared, and the metrics file (DESIGN.md §2) that compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.categories import CategoryList
from prompt_tuning.features import Features
from prompt_tuning.metrics import average_precisions, chance_map, mean_average_precision
from prompt_tuning.prompts import handcrafted_features
from prompt_tuning.scoring import branch_scores, fuse
from prompt_tuning.tuning import CaptionSet
from prompt_tuning.vlm import HANDCRAFTED, VLM, Geometry

BRANCHES = ("global", "local", "fused")
_ITEMS_AT_ONCE = 256


@dataclass(frozen=True)
class ClassFeatures:
    """Unit features of all classes for both branches, each `(classes, dim)`."""

    pooled: Tensor
    local: Tensor


def untuned_arms(vlm: VLM, categories: CategoryList, train: CaptionSet) -> dict[str, ClassFeatures]:
    """The arms that tuning must beat; each uses the same class features on both branches.

    `zero_shot`: "a photo of a {name}.". `synonym_average`: mean over the category's names,
    synonyms and kinds. `caption_average`: mean of the features of those captions of the class that
    tuning sees.
    """
    words = [[*category.names, *category.kinds] for category in categories.categories]
    flat = [HANDCRAFTED.format(word) for of_class in words for word in of_class]
    encoded = F.normalize(vlm.encode_text(flat), dim=-1).split([len(w) for w in words])
    synonyms = torch.stack([of_class.mean(0) for of_class in encoded])
    labels = train.labels[train.rows].float()
    captions = labels.T @ train.features.pooled[train.rows].float()
    # A class without captions has no average of them; its hand-crafted prompt stands in.
    handcrafted = handcrafted_features(vlm, categories)
    captions = torch.where((labels > 0).any(0)[:, None], captions, handcrafted)
    return {
        name: ClassFeatures(F.normalize(features, dim=-1), F.normalize(features, dim=-1))
        for name, features in (
            ("zero_shot", handcrafted),
            ("synonym_average", synonyms),
            ("caption_average", captions),
        )
    }


def arm_scores(
    items: Features, classes: ClassFeatures, geometry: Geometry, fusion: str
) -> dict[str, np.ndarray]:
    """Scores `(items, classes)` of each branch and their fusion."""
    scores: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}
    for rows in torch.arange(len(items.pooled)).split(_ITEMS_AT_ONCE):
        some = items.take(rows).float()
        pooled, local = branch_scores(some, classes.pooled, classes.local, geometry)
        fused = fuse(pooled, local, geometry, fusion)
        for branch, of_branch in zip(BRANCHES, (pooled, local, fused), strict=True):
            scores[branch].append(of_branch)
    return {branch: torch.cat(parts).numpy() for branch, parts in scores.items()}


def compare_arms(
    items: Features,
    labels: np.ndarray,
    categories: CategoryList,
    untuned: dict[str, ClassFeatures],
    tuned_by_seed: list[ClassFeatures],
    geometry: Geometry,
    fusion: str,
) -> dict[str, Any]:
    """The `chance_map`, `map`, `map_by_seed` and `ap` of the metrics file, 0-100.

    `labels`: `(items, classes)`, bool. AP is of the fused scores, null for classes without
    positives; the tuned arm's figures are means over its seeds.
    """

    def measured(classes: ClassFeatures) -> tuple[dict[str, float], list[float | None]]:
        scores = arm_scores(items, classes, geometry, fusion)
        maps = {b: 100 * mean_average_precision(scores[b], labels) for b in BRANCHES}
        return maps, average_precisions(scores["fused"], labels)

    maps: dict[str, dict[str, float]] = {}
    aps: dict[str, dict[str, float | None]] = {}
    for arm, classes in untuned.items():
        maps[arm], ap = measured(classes)
        aps[arm] = dict(zip(categories.names, map(_percent, ap), strict=True))
    of_seeds = [measured(classes) for classes in tuned_by_seed]
    by_seed = {branch: [map_of_seed[branch] for map_of_seed, _ in of_seeds] for branch in BRANCHES}
    maps["tuned"] = {branch: float(np.mean(values)) for branch, values in by_seed.items()}
    aps["tuned"] = {
        name: None if column[0] is None else _percent(float(np.mean(column)))
        for name, column in zip(
            categories.names, zip(*(ap for _, ap in of_seeds), strict=True), strict=True
        )
    }
    return {
        "chance_map": 100 * chance_map(labels),
        "map": maps,
        "map_by_seed": {"tuned": by_seed},
        "ci": {},
        "ap": aps,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
