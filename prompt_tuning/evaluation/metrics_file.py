"""The content of a metrics file: the figures of all methods, and the protocol they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.compare import MethodScores, compare_methods, figures_without_meaning


@dataclass(frozen=True)
class Protocol:
    """How images, or held-out captions, are measured.

    `dataset`: the name of the images' data set; None for captions. `options`: of the data set, for
    the protocol's text.
    """

    dataset: str | None
    options: dict[str, Any]
    vlm: VLMSettings
    fusion: str
    categories: CategoryList


def make_metrics(
    protocol: Protocol,
    images: LabelledImages | None,
    scores: MethodScores,
    labels: np.ndarray,
    ignored: np.ndarray | None,
    seeds: Sequence[int],
    selected_on: str,
    left_out: int,
) -> dict[str, Any]:
    """The figures of all methods and the protocol.

    `images`: None if the items are held-out captions. `labels`, `ignored`: of the items,
    `(items, classes)`, bool. `seeds`: of the tuned method. `selected_on`: see `Selection.describe`.
    `left_out`: how many of the data set's images are left out of the items.
    """
    others = images.other_classes if images else ()
    vlm, names = protocol.vlm, np.array(protocol.categories.names)
    unlabelled = np.zeros(len(names), dtype=bool) if ignored is None else ignored.all(0)
    positives = (labels if ignored is None else labels & ~ignored).any(0)
    return {
        "dataset": protocol.dataset or "held_out_captions",
        "images": len(labels) if images else 0,
        "protocol": {
            **protocol.options,
            "classes_evaluated": int(positives.sum()),
            "classes_without_positives": ", ".join(names[~positives & ~unlabelled]) or "none",
            "classes_that_the_data_set_does_not_label": ", ".join(names[unlabelled]) or "none",
            "classes_of_the_data_set_that_are_left_out": ", ".join(others) or "none",
            "average_precision": "all points, not interpolated; map_11_points: VOC 2007's",
            "mean": "over the classes that have a positive",
            "resolution": vlm.resolution,
            "resize": "straight, no crop",
            "tiles": ", ".join(f"{n} × {n}" for n in vlm.tiles) or "none",
            **({"patches": vlm.patches} if vlm.patches != "value" else {}),
            "fusion": protocol.fusion,
            "checkpoint": "lowest ranking loss on held-out captions (before `anchor_weight` acts)",
            "selected_on": selected_on,
            **({"images_left_out_as_they_selected": left_out} if left_out else {}),
            "seeds": ", ".join(map(str, seeds)),
            "ap_of": "fused scores, mean over seeds",
            "intervals": "95 %, bootstrap over the images, fused scores; differences are paired",
        },
        "notes": [
            *([images.describe_other_classes()] if images and others else []),
            *figures_without_meaning(
                labels,
                ignored,
                protocol.categories.names,
                "images" if images else "held-out captions",
            ),
        ],
        **compare_methods(scores, labels, protocol.categories, ignored),
    }
