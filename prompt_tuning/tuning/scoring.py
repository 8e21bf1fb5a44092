"""Scores of classes for images or captions, global and local, and their fusion."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.features import Features
from prompt_tuning.settings import Settings

Positive = Annotated[float, Field(gt=0, le=1000)]


class ScoringSettings(Settings):
    """What to take instead of the backbone's own geometry (a field left out keeps its own).

    `fusion`: `mean`, the weighted mean of raw scores, or `softmax`, the released code's weighted
    mean of softmaxes over classes, which makes scores compete.
    """

    scale: Positive | None = None
    local_temperature: Positive | None = None
    global_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    fusion: Literal["mean", "softmax"] = "mean"

    def resolve(self, geometry: Geometry) -> Geometry:
        """The backbone's geometry with these settings in place of its own."""
        changes = self.model_dump(exclude={"fusion"}, exclude_none=True)
        return geometry.model_copy(update=changes)


def global_scores(features: Features, class_features: Tensor, geometry: Geometry) -> Tensor:
    """`scale · cos` of pooled features and class features `(classes, dim)`: `(batch, classes)`.

    Where images have tiles, the mean of this score and the best tile's: a second look at the part
    that speaks for the class (TagCLIP's re-identification, arXiv 2312.12828, §3.3, but at tiles).
    """
    whole = geometry.scale * features.pooled @ class_features.T
    if features.tiles is None:
        return whole
    best = (geometry.scale * features.tiles @ class_features.T).amax(1)
    return (whole + best) / 2


def region_scores(
    regions: Tensor, counts: Tensor, class_features: Tensor, geometry: Geometry
) -> Tensor:
    """Scores `(batch, classes)` aggregated over each item's regions (see `Geometry`).

    `regions`: `(Σ regions, dim)` and `counts` `(batch,)` as in `Features`.
    """
    cosines = regions @ class_features.T  # (Σ regions, classes)
    items = len(counts)
    if items and len(regions) == items * int(counts.max()):
        return scores_of_equal(cosines.unflatten(0, (items, -1)), geometry)
    return scores_of_ragged(cosines, counts, geometry)


def scores_of_equal(cosines: Tensor, geometry: Geometry) -> Tensor:
    """`region_scores` of items with equally many regions, `(batch, regions, classes)`.

    Images always have: faster than scattering, and on a GPU the same bits each time.
    """
    sharpened = geometry.local_temperature * cosines
    if geometry.aggregation == "softmax":
        return geometry.scale * (sharpened.softmax(1) * cosines).sum(1)
    mean = sharpened.logsumexp(1) - math.log(cosines.shape[1])
    return geometry.scale * (mean / geometry.local_temperature)


def scores_of_ragged(cosines: Tensor, counts: Tensor, geometry: Geometry) -> Tensor:
    """`region_scores` of items with any numbers of regions, such as captions.

    `cosines`: `(Σ regions, classes)`. `counts`: `(batch,)`. A GPU adds in any order here, unless
    `torch.use_deterministic_algorithms` forbids it.
    """
    item = torch.repeat_interleave(torch.arange(len(counts)), counts).to(cosines.device)
    shape = (len(counts), cosines.shape[1])
    highest = cosines.detach().new_full(shape, -1.0)
    index = item[:, None].expand_as(cosines)
    # Noise may take cosines below -1: what the tensor is filled with must not count.
    highest = highest.scatter_reduce(0, index, cosines.detach(), "amax", include_self=False)
    weights = torch.exp(geometry.local_temperature * (cosines - highest[item]))
    total = weights.new_zeros(shape).index_add(0, item, weights)
    if geometry.aggregation == "softmax":
        weighted = weights.new_zeros(shape).index_add(0, item, weights * cosines)
        return geometry.scale * weighted / total
    mean = total / counts.to(total)[:, None]
    return geometry.scale * (highest + mean.log() / geometry.local_temperature)


def region_shares(regions: Tensor, class_features: Tensor, geometry: Geometry) -> Tensor:
    """Each region's weight in one item's aggregated scores: `(regions, classes)`, columns add to 1.

    Of `softmax` its weights, of `log_mean_exp` its gradient, which are the same.
    """
    return (geometry.local_temperature * regions @ class_features.T).softmax(0)


def branch_scores(
    features: Features, class_pooled: Tensor, class_local: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Global and local scores, each `(batch, classes)`."""
    return (
        global_scores(features, class_pooled, geometry),
        region_scores(features.regions, features.counts, class_local, geometry),
    )


def raw_image_scores(
    features: Features, class_pooled: Tensor, class_local: Tensor, geometry: Geometry
) -> Tensor:
    """The weighted mean of both branches' raw scores of images, `(batch, classes)`.

    As `branch_scores` and `fuse`, but without a look at `counts`, which ONNX cannot follow: all
    images of a backbone have equally many regions.
    """
    regions = features.regions.reshape(features.pooled.shape[0], -1, features.regions.shape[-1])
    local = scores_of_equal(regions @ class_local.T, geometry)
    return fuse(global_scores(features, class_pooled, geometry), local, geometry)


def fuse(of_global: Tensor, of_local: Tensor, geometry: Geometry, fusion: str = "mean") -> Tensor:
    """The two branches' scores in one, `(batch, classes)`."""
    if fusion == "softmax":
        of_global, of_local = of_global.softmax(-1), of_local.softmax(-1)
    weight = geometry.global_weight
    return weight * of_global + (1 - weight) * of_local
