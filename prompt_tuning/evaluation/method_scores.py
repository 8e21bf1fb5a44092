"""The scores of one method's class features on images or captions, by branch and fused."""

from __future__ import annotations

import numpy as np
import torch

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.score_matrix import empty_scores
from prompt_tuning.features import FeatureSource
from prompt_tuning.tuning.scoring import branch_scores, fuse

SCORE_KINDS = ("global", "local", "fused")
_ITEMS_AT_ONCE = 256


def method_scores(
    items: FeatureSource, classes: ClassFeatures, geometry: Geometry, fusion: str
) -> dict[str, np.ndarray]:
    """Scores `(items, classes)` of each branch and their fusion, computed where `classes` are."""
    count = len(items.pooled)
    scores = {kind: empty_scores(count, len(classes.pooled)) for kind in SCORE_KINDS}
    for rows in torch.arange(count).split(_ITEMS_AT_ONCE):
        some = items.take(rows).float().to(classes.pooled.device)
        pooled, local = branch_scores(some, classes.pooled, classes.local, geometry)
        fused = fuse(pooled, local, geometry, fusion)
        for kind, batch in zip(SCORE_KINDS, (pooled, local, fused), strict=True):
            scores[kind][rows.numpy()] = batch.cpu().numpy()
    return scores
