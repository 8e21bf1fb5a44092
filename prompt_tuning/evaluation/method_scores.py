"""The scores of one method's class features on images or captions, by branch and fused."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.features import Features
from prompt_tuning.tuning.scoring import branch_scores, fuse

SCORE_KINDS = ("global", "local", "fused")
_ITEMS_AT_ONCE = 256


def method_scores(
    items: Features, classes: ClassFeatures, geometry: Geometry, fusion: str
) -> dict[str, np.ndarray]:
    """Scores `(items, classes)` of each branch and their fusion."""
    scores: dict[str, list[Tensor]] = {kind: [] for kind in SCORE_KINDS}
    for rows in torch.arange(len(items.pooled)).split(_ITEMS_AT_ONCE):
        some = items.take(rows).float()
        pooled, local = branch_scores(some, classes.pooled, classes.local, geometry)
        fused = fuse(pooled, local, geometry, fusion)
        for kind, batch in zip(SCORE_KINDS, (pooled, local, fused), strict=True):
            scores[kind].append(batch)
    return {kind: torch.cat(batches).numpy() for kind, batches in scores.items()}
