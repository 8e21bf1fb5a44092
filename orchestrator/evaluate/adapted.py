"""Measure an artifact that labelled images taught, on images that did not teach it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import InputError, as_input_error
from orchestrator.runs.finished_run import FinishedRun
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.compare import RESAMPLES, MethodScores
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import FeatureSource
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import calibration_quality


def read_adapted(folder: Path, run: FinishedRun) -> Artifact:
    """Read an artifact that was made from the run's. Raises InputError if it was not."""
    with as_input_error():
        artifact = Artifact.load(folder)
    if not artifact.learned or artifact.learned.parent != run.artifact.version:
        raise InputError(
            f"--artifact: {folder} must be made by adapt or calibrate, with labelled images, from "
            f"{run.folder / 'artifact'} (version {run.artifact.version})"
        )
    return artifact


def taught(artifact: Artifact | None, images: LabelledImages) -> np.ndarray:
    """Which images have the content of one that taught the artifact: `(images,)`, bool."""
    if not artifact or not artifact.learned:
        return np.zeros(len(images.files), dtype=bool)
    known = set(artifact.learned.images)
    return np.array([content in known for content in images.contents], dtype=bool)


def measure_adapted(
    folder: Path,
    artifact: Artifact,
    scores: MethodScores,
    items: FeatureSource,
    images: LabelledImages,
) -> dict[str, Any]:
    """Figures (0-100) of an adapted artifact, and its fused mAP's lead over the tuned prompts.

    `scores`: of the run's methods. `items`: the images' features.
    """
    own = method_scores(items, artifact.classes, artifact.geometry, artifact.fusion)
    labels, ignored = images.labels, images.ignored
    tuned = [of_seed["fused"] for of_seed in scores["tuned"]]
    difference = paired_difference([own["fused"]], tuned, labels, RESAMPLES, 0, ignored)
    raw = method_scores(items, artifact.classes, artifact.geometry, "mean")["fused"]
    return {
        "artifact": str(folder),
        "learned_from_images": len(artifact.learned.images) if artifact.learned else 0,
        "map": {
            kind: 100 * mean_average_precision(own[kind], labels, ignored) for kind in SCORE_KINDS
        },
        "difference": {
            end: None if math.isnan(value) else 100 * value
            for end, value in asdict(difference).items()
        },
        "calibration": calibration_quality(raw, labels, ignored, artifact.calibration),
    }
