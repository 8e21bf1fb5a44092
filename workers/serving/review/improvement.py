"""Adapting the served artifact to a folder's labelled images, inside a model's process.

The model is loaded there already, on a GPU where there is one, and a model that dies is replaced
and the call repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from prompt_tuning.backbones.base import VLM
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.tagging.adaptation import Adaptation, adapt
from prompt_tuning.tagging.artifact import Artifact, version_of
from workers.serving.review.encoded_files import EncodedFiles

_LISTED = 3


@dataclass(frozen=True)
class ScoredFiles:
    """For each file its calibrated scores `(classes,)`, or why it cannot be read.

    `version` and `thresholds` `(classes,)`: of the artifact that gave them.
    """

    version: str
    thresholds: np.ndarray
    scores: list[np.ndarray | str]


@dataclass(frozen=True)
class Improvement:
    """The version that was published, and sentences about what it gains."""

    version: str
    lines: list[str]


def improve(
    original: Path,
    improved: Path,
    folder: Path,
    labels: tuple[str, ...],
    vlm: VLM,
    encoded_files: EncodedFiles,
) -> Improvement:
    """Adapt `original` to all labelled images of `folder`, and publish it as `improved`.

    Never adapted from an adapted artifact: its images would count twice.

    Raises:
        ValueError: in one line, if the labels of `original` are not `labels` any more, and as
            `read_folder` and `adapt` do.
    """
    artifact = Artifact.load(original)
    if artifact.categories.names != labels:
        raise ValueError("the artifact has other labels than before; start the service again")
    images = read_folder(artifact.categories, folder)
    # On all cores: people wait for this, and the other models are mostly idle.
    encoded = encoded_files.features(vlm, images.files, psutil.cpu_count() or 1)
    adaptation = adapt(artifact, vlm, images, encoded=encoded)
    adaptation.artifact.save(improved)
    return Improvement(version_of(improved), [*adaptation.lines, *_left_out(images, adaptation)])


def _left_out(images: LabelledImages, adaptation: Adaptation) -> list[str]:
    """Sentences about answers that taught nothing."""
    lines = [images.describe_other_classes()] if images.other_classes else []
    problems = adaptation.problems
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        lines.append(f"Left out, because it cannot be read: {'; '.join(problems[:_LISTED])}{more}.")
    return lines
