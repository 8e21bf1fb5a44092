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
from prompt_tuning.intervals import Difference, Interval, bootstrap_map, paired_difference
from prompt_tuning.metrics import average_precisions, chance_map, mean_average_precision
from prompt_tuning.prompts import handcrafted_features
from prompt_tuning.scoring import branch_scores, fuse
from prompt_tuning.tuning import CaptionSet
from prompt_tuning.vlm import HANDCRAFTED, VLM, Geometry

BRANCHES = ("global", "local", "fused")
_ITEMS_AT_ONCE = 256
_RESAMPLES = 1000


@dataclass(frozen=True)
class ClassFeatures:
    """Unit features of all classes for both branches, each `(classes, dim)`."""

    pooled: Tensor
    local: Tensor


def untuned_arms(vlm: VLM, categories: CategoryList, train: CaptionSet) -> dict[str, ClassFeatures]:
    """The arms that tuning must beat; each uses the same class features on both branches.

    `zero_shot`: "a photo of a {name}.". `templates`: mean over CLIP's 80 (Radford et al., 2021,
    arXiv 2103.00020, §3.1.4). `synonym_average`: mean over the category's names, synonyms and
    kinds. `caption_average`: mean of the features of those captions of the class that
    tuning sees.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    def text_average(texts: list[list[str]]) -> Tensor:
        """The mean of each class's texts: `(classes, dim)`."""
        flat = [text for of_class in texts for text in of_class]
        encoded = F.normalize(vlm.encode_text(flat), dim=-1).split([len(t) for t in texts])
        return torch.stack([of_class.mean(0) for of_class in encoded])

    words = [[*category.names, *category.kinds] for category in categories.categories]
    synonyms = [[HANDCRAFTED.format(word) for word in of_class] for of_class in words]
    templates = [[fill(name) for fill in OPENAI_IMAGENET_TEMPLATES] for name in categories.names]
    labels = train.labels[train.rows].float()
    captions = labels.T @ train.features.pooled[train.rows].float()
    # A class without captions has no average of them; its hand-crafted prompt stands in.
    handcrafted = handcrafted_features(vlm, categories)
    captions = torch.where((labels > 0).any(0)[:, None], captions, handcrafted)
    return {
        name: ClassFeatures(F.normalize(features, dim=-1), F.normalize(features, dim=-1))
        for name, features in (
            ("zero_shot", handcrafted),
            ("templates", text_average(templates)),
            ("synonym_average", text_average(synonyms)),
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
    ignored: np.ndarray | None = None,
) -> dict[str, Any]:
    """The `chance_map`, `map`, `map_by_seed`, `ci` and `ap` of the metrics file, 0-100.

    `labels`, `ignored`: `(items, classes)`, bool. AP is of the fused scores, null for classes
    without positives; the tuned arm's figures are means over its seeds. `ci`: 95 % intervals of
    the fused mAP, and of what tuned is above each other arm on the same items (intervals.py).
    """
    scores = {arm: arm_scores(items, of, geometry, fusion) for arm, of in untuned.items()}
    tuned = [arm_scores(items, classes, geometry, fusion) for classes in tuned_by_seed]
    maps: dict[str, dict[str, float]] = {
        arm: {b: 100 * mean_average_precision(of_arm[b], labels, ignored) for b in BRANCHES}
        for arm, of_arm in scores.items()
    }
    by_seed = {
        b: [100 * mean_average_precision(of_seed[b], labels, ignored) for of_seed in tuned]
        for b in BRANCHES
    }
    maps["tuned"] = {branch: float(np.mean(values)) for branch, values in by_seed.items()}
    aps = {
        arm: _percents(average_precisions(of_arm["fused"], labels, ignored), categories)
        for arm, of_arm in scores.items()
    }
    of_seeds = [average_precisions(of_seed["fused"], labels, ignored) for of_seed in tuned]
    means = [
        None if column[0] is None else float(np.mean(column))
        for column in zip(*of_seeds, strict=True)
    ]
    aps["tuned"] = _percents(means, categories)
    fused = {arm: [of_arm["fused"]] for arm, of_arm in scores.items()}
    fused["tuned"] = [of_seed["fused"] for of_seed in tuned]
    return {
        "chance_map": 100 * chance_map(labels, ignored),
        "map": maps,
        "map_by_seed": {"tuned": by_seed},
        "ci": _intervals(fused, labels, ignored),
        "ap": aps,
    }


def _intervals(
    fused: dict[str, list[np.ndarray]], labels: np.ndarray, ignored: np.ndarray | None
) -> dict[str, list[float]]:
    """Low and high ends, 0-100: of each arm's mAP, and of tuned's lead over each other arm."""
    ends: dict[str, Interval | Difference] = {
        arm: bootstrap_map(scores, labels, _RESAMPLES, 0, ignored) for arm, scores in fused.items()
    }
    for arm, scores in fused.items():
        if arm != "tuned":
            ends[f"tuned - {arm}"] = paired_difference(
                fused["tuned"], scores, labels, _RESAMPLES, 0, ignored
            )
    return {name: [100 * interval.low, 100 * interval.high] for name, interval in ends.items()}


def _percents(aps: list[float | None], categories: CategoryList) -> dict[str, float | None]:
    return {
        name: None if ap is None else 100 * ap
        for name, ap in zip(categories.names, aps, strict=True)
    }
