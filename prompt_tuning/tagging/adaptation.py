"""Adapting an artifact to a person's own labelled images: class features and thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prompt_tuning.backbones.base import VLM
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.photo_calibration import cross_validated, fit_labelled
from prompt_tuning.tagging.tag_stream import score_files
from prompt_tuning.tagging.tagger import Tagger

MIN_IMAGES = 5


@dataclass(frozen=True)
class Adaptation:
    """An adapted artifact, and sentences about what it gains on images that did not teach it."""

    artifact: Artifact
    lines: list[str]


def adapt(
    artifact: Artifact, vlm: VLM, images: LabelledImages, *, seed: int = 0, threads: int = 1
) -> Adaptation:
    """Adapt an artifact to labelled images.

    `images`: over the artifact's categories; ignored entries are unknown. `threads`: how many
    batches are read and encoded at once.

    Raises:
        ValueError: in one line, if fewer than `MIN_IMAGES` images can be read.
    """
    scored = list(score_files(Tagger(artifact, vlm), images.files, threads))
    rows = [row for row, scores in enumerate(scored) if not isinstance(scores, str)]
    if len(rows) < MIN_IMAGES:
        raise ValueError(f"at least {MIN_IMAGES} readable images are required (got {len(rows)})")
    raw = np.stack([scored[row] for row in rows])
    labels = images.labels[rows]
    ignored = None if images.ignored is None else images.ignored[rows]
    before, after = cross_validated(artifact.calibration, raw, labels, ignored, seed)
    calibration = fit_labelled(artifact.calibration, raw, labels, ignored)
    return Adaptation(
        replace(artifact, calibration=calibration),
        [f"F1 at thresholds {before.micro_f1:.1f} before, {after.micro_f1:.1f} after"],
    )
