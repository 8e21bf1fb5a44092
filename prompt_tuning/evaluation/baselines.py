"""The methods that are compared, and the metrics file (docs/evaluation.md) that compares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE, VLM, Geometry
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation.bootstrap import (
    LEAST_IMAGES,
    Difference,
    Interval,
    bootstrap_map,
    paired_difference,
)
from prompt_tuning.evaluation.metrics import (
    average_precisions,
    chance_map,
    contrasted,
    coverage_error,
    mean_average_precision,
    tag_quality,
    tags_at_top_k,
)
from prompt_tuning.features import Features
from prompt_tuning.tuning.prompts import anchor_features
from prompt_tuning.tuning.scoring import branch_scores, fuse
from prompt_tuning.tuning.trainer import CaptionSet

BRANCHES = ("global", "local", "fused")
UNTUNED = ("zero_shot", "templates", "synonym_average", "caption_average")
_ITEMS_AT_ONCE = 256
RESAMPLES = 1000
_TOP_K = 3

# By method: for each set of class features, scores `(items, classes)` by branch.
MethodScores = dict[str, list[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class ClassFeatures:
    """Unit features of all classes for both branches, each `(classes, dim)`."""

    pooled: Tensor
    local: Tensor


@dataclass(frozen=True)
class MethodFeatures:
    """The class features of every method: one set of each baseline, one of each tuned seed."""

    untuned: dict[str, ClassFeatures]
    tuned: dict[int, ClassFeatures]

    def save(self, file: Path) -> None:
        """Write them under keys such as `zero_shot.global` and `tuned.0.local`."""
        named = {**self.untuned, **{f"tuned.{seed}": of for seed, of in self.tuned.items()}}
        save_file(
            {
                f"{name}.{branch}": features.contiguous()
                for name, of in named.items()
                for branch, features in (("global", of.pooled), ("local", of.local))
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> MethodFeatures:
        """Read what `save` wrote; seeds in ascending order."""
        tensors = load_file(file)

        def of(name: str) -> ClassFeatures:
            return ClassFeatures(tensors[f"{name}.global"], tensors[f"{name}.local"])

        seeds = {int(key.split(".")[1]) for key in tensors if key.startswith("tuned.")}
        return cls(
            untuned={method: of(method) for method in UNTUNED},
            tuned={seed: of(f"tuned.{seed}") for seed in sorted(seeds)},
        )


def untuned_baselines(
    vlm: VLM, categories: CategoryList, train: CaptionSet
) -> dict[str, ClassFeatures]:
    """The methods that tuning must beat; each uses the same class features on both branches.

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
    synonyms = [[ANCHOR_TEMPLATE.format(word) for word in of_class] for of_class in words]
    templates = [[fill(name) for fill in OPENAI_IMAGENET_TEMPLATES] for name in categories.names]
    labels = train.labels[train.rows].float()
    captions = labels.T @ train.features.pooled[train.rows].float()
    # A class without captions has no average of them; its hand-crafted prompt stands in.
    anchor = anchor_features(vlm, categories)
    captions = torch.where((labels > 0).any(0)[:, None], captions, anchor)
    return {
        name: ClassFeatures(F.normalize(features, dim=-1), F.normalize(features, dim=-1))
        for name, features in (
            ("zero_shot", anchor),
            ("templates", text_average(templates)),
            ("synonym_average", text_average(synonyms)),
            ("caption_average", captions),
        )
    }


def method_scores(
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


def score_methods(
    items: Features, methods: MethodFeatures, geometry: Geometry, fusion: str
) -> MethodScores:
    """The scores of every method on the same items."""
    features = {
        **{method: [of] for method, of in methods.untuned.items()},
        "tuned": methods.tuned.values(),
    }
    return {
        method: [method_scores(items, classes, geometry, fusion) for classes in by_branch]
        for method, by_branch in features.items()
    }


def compare_methods(
    scores: MethodScores,
    labels: np.ndarray,
    categories: CategoryList,
    ignored: np.ndarray | None = None,
) -> dict[str, Any]:
    """The figures of the metrics file, 0-100, means over the seeds for the tuned method.

    `labels`, `ignored`: `(items, classes)`, bool. `map` and `map_by_seed` are of each branch, all
    other figures of the fused scores. `map_11_points`: mean of VOC 2007's 11-point AP. `ci`: 95 %
    intervals of the mAP, and of what tuned is above each other method on the same items; none where
    there is nothing to resample (intervals.py). `ap` is null for classes without `positives`.
    `f1_at_top_k` and `coverage_error` (a number of tags) are of the tuned method's best tags.
    """
    maps = {
        method: {
            branch: [100 * mean_average_precision(s[branch], labels, ignored) for s in sets]
            for branch in BRANCHES
        }
        for method, sets in scores.items()
    }
    fused = {method: [of_set["fused"] for of_set in sets] for method, sets in scores.items()}
    wanted = labels if ignored is None else labels & ~ignored
    return {
        "chance_map": 100 * chance_map(labels, ignored),
        "map": {
            method: {b: float(np.mean(of[b])) for b in BRANCHES} for method, of in maps.items()
        },
        "map_by_seed": {"tuned": maps["tuned"]},
        "map_11_points": {
            method: _mean([mean_average_precision(s, labels, ignored, "11") for s in sets])
            for method, sets in fused.items()
        },
        "ci": _intervals(fused, labels, ignored),
        "ap": {
            method: dict(zip(categories.names, _class_aps(sets, labels, ignored), strict=True))
            for method, sets in fused.items()
        },
        "positives": dict(zip(categories.names, wanted.sum(0).tolist(), strict=True)),
        "f1_at_top_k": _top_k_quality(fused["tuned"], labels, ignored),
        "coverage_error": {
            "tuned": float(np.mean([coverage_error(s, labels, ignored) for s in fused["tuned"]]))
        },
    }


def figures_without_meaning(
    labels: np.ndarray, ignored: np.ndarray | None, names: Sequence[str], items: str
) -> list[str]:
    """Sentences about what these labels cannot measure; `items`: what they are of, e.g. images.

    `labels`, `ignored`: `(items, classes)`, bool; `names` of the classes.
    """
    shown = (labels if ignored is None else labels & ~ignored).any(0)
    always = shown & ~contrasted(labels, ignored)
    listed = ", ".join(np.array(names)[always])
    told = []
    if always.any() and always.sum() == shown.sum():
        told.append(
            f"All {items} ({len(labels):,}) show every class that is measured ({listed}): any "
            "scores reach 100 mAP, so these mAPs mean nothing."
        )
    elif always.any():
        told.append(
            f"All {items} show {listed}: any scores reach an AP of 100 there, and the mAP "
            "includes it."
        )
    if len(labels) < LEAST_IMAGES:
        told.append(f"Too few {items} for intervals: {len(labels)}; {LEAST_IMAGES} are the least.")
    return told


def precision_recall(
    scores: np.ndarray, positives: np.ndarray, points: int
) -> list[tuple[float, float]]:
    """(recall, precision) of one class, each in [0, 1], at no more than `points` of its positives.

    Args:
        scores: `(images,)`.
        positives: `(images,)`, bool, with at least one true.
        points: at least 2; the first and the last positive are always among them.
    """
    order = np.argsort(-scores, kind="stable")
    ranks = np.flatnonzero(positives[order]) + 1
    hits = np.unique(np.linspace(1, len(ranks), min(points, len(ranks))).round().astype(int))
    return [(float(n / len(ranks)), float(n / ranks[n - 1])) for n in hits]


def _intervals(
    fused: dict[str, list[np.ndarray]], labels: np.ndarray, ignored: np.ndarray | None
) -> dict[str, list[float]]:
    """Interval ends, 0-100, of each method's mAP and of tuned's lead over each other method."""
    ends: dict[str, Interval | Difference] = {
        method: bootstrap_map(scores, labels, RESAMPLES, 0, ignored)
        for method, scores in fused.items()
    }
    for method, scores in fused.items():
        if method != "tuned":
            ends[f"tuned - {method}"] = paired_difference(
                fused["tuned"], scores, labels, RESAMPLES, 0, ignored
            )
    return {
        name: [100 * interval.low, 100 * interval.high]
        for name, interval in ends.items()
        if not math.isnan(interval.low)
    }


def _class_aps(
    sets: list[np.ndarray], labels: np.ndarray, ignored: np.ndarray | None
) -> list[float | None]:
    """AP of each class, 0-100, mean over the sets of scores."""
    of_sets = [average_precisions(scores, labels, ignored) for scores in sets]
    means = np.array(of_sets, dtype=float).mean(0)  # NaN for None
    return [None if np.isnan(ap) else 100 * float(ap) for ap in means]


def _top_k_quality(
    sets: list[np.ndarray], labels: np.ndarray, ignored: np.ndarray | None
) -> dict[str, Any]:
    """Precision, recall and F1 of each image's best tags, 0-100, mean over the sets of scores.

    Ignored entries take no place among the best.
    """
    k = min(_TOP_K, labels.shape[1])
    if ignored is not None:
        sets = [np.where(ignored, -np.inf, scores) for scores in sets]
    qualities = [tag_quality(tags_at_top_k(scores, k), labels, ignored) for scores in sets]
    return {
        "k": k,
        "tuned": {
            average: {
                rate: _mean([getattr(getattr(quality, average), rate) for quality in qualities])
                for rate in ("precision", "recall", "f1")
            }
            for average in ("micro", "macro")
        },
    }


def _mean(shares: Sequence[float]) -> float:
    """The mean, 0-100."""
    return 100 * float(np.mean(shares))
