"""Compare two finished runs on the same images, over the classes that both have."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from orchestrator.errors import InputError
from orchestrator.runs.finished_run import FinishedRun
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.compare import RESAMPLES, MethodScores
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import FeatureSource
from prompt_tuning.label_names import LabelNames


def shared_classes(
    run: FinishedRun, other: FinishedRun, images: LabelledImages
) -> list[tuple[int, int]]:
    """The classes that both runs have by name, as their positions in either run.

    Raises InputError if the images show none of them.
    """
    others = LabelNames(other.artifact.categories.names)
    positions = [(c, others.find(name)) for c, name in enumerate(run.artifact.categories.names)]
    shared = [(c, position) for c, position in positions if position is not None]
    if not images.labels[:, [c for c, _ in shared]].any():
        raise InputError(
            f"--against: {other.folder} has none of the classes that the images show; categories "
            "are matched by name"
        )
    return shared


def compare_runs(
    scores: MethodScores,
    other: FinishedRun,
    items: FeatureSource,
    images: LabelledImages,
    shared: list[tuple[int, int]],
) -> dict[str, Any]:
    """Compare the tuned methods of two runs on the same images and shared classes, 0-100.

    `items`: the images' features by the other run's VLM. `shared`: see `shared_classes`.
    """
    own, theirs = map(list, zip(*shared, strict=True))
    labels = images.labels[:, own]
    ignored = None if images.ignored is None else images.ignored[:, own]
    geometry, fusion = other.artifact.geometry, other.artifact.fusion
    sides = (
        [by_branch["fused"][:, own] for by_branch in scores["tuned"]],
        [
            method_scores(items, classes, geometry, fusion)["fused"][:, theirs]
            for classes in other.methods.tuned.values()
        ],
    )
    this, that = (
        100 * float(np.mean([mean_average_precision(fused, labels, ignored) for fused in side]))
        for side in sides
    )
    difference = paired_difference(*sides, labels, RESAMPLES, 0, ignored)
    return {
        "run": str(other.folder),
        "classes": int(labels.any(0).sum()),
        "map": {"this": this, "other": that},
        "difference": {
            end: None if math.isnan(value) else 100 * value
            for end, value in asdict(difference).items()
        },
    }
