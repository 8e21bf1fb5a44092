"""`calibrate`: score a person's photos, fit sigmoids and thresholds, save a new artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from orchestrator.cluster.resources import local_node
from orchestrator.console import StageProgress
from orchestrator.errors import InputError
from orchestrator.tagging.listing import ImageListing
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.evaluation.metrics import contrasted
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.photo_calibration import cross_validated, fit_labelled, fit_unlabelled
from prompt_tuning.tagging.tag_stream import score_files
from prompt_tuning.tagging.tagger import Tagger

_LEAST_LABELLED = 10
_FEW_UNLABELLED = 50


@dataclass(frozen=True)
class CalibrateOptions:
    """What is asked. Either `labelled`, fields of DatasetSettings, or names of `photos`."""

    artifact: Path
    out: Path
    labelled: dict[str, str]
    photos: list[str]
    cache: Path


def calibrate(options: CalibrateOptions, console: Console) -> None:
    """Leave an artifact at `options.out` that differs in its calibration only.

    Raises:
        InputError: for what a person has to change.
    """
    if options.out.exists():
        raise InputError(f"--out: {options.out} is there already; choose another name")
    artifact = _load(options.artifact)
    if " labelled photos" in artifact.calibration.source:
        raise InputError(
            f"{options.artifact}: was calibrated on labelled photos before, which would count "
            "twice; start from the artifact that it was made of"
        )
    if options.labelled:
        calibration = _with_labels(options, artifact, console)
    else:
        calibration = _without_labels(options, artifact, console)
    replace(artifact, calibration=calibration).save(options.out)
    console.print(f"{options.out}  (calibrated on {calibration.source})", soft_wrap=True)


def _with_labels(options: CalibrateOptions, artifact: Artifact, console: Console) -> Calibration:
    photos = _labelled(options.labelled, artifact.categories)
    raw, rows = _raw_scores(options, photos.files, console)
    if len(rows) < _LEAST_LABELLED:
        raise InputError(
            f"--root: {len(rows)} photos that can be read are too few; {_LEAST_LABELLED} are the "
            "least, 20 to 100 do much"
        )
    if photos.other_classes:
        console.print(photos.describe_other_classes(), soft_wrap=True, markup=False)
    labels = photos.labels[rows]
    ignored = np.zeros_like(labels) if photos.ignored is None else photos.ignored[rows]
    ignored = ignored | _always_shown(labels, ignored, artifact.categories, console)
    before, after = cross_validated(artifact.calibration, raw, labels, ignored)
    console.print(
        f"On photos that a fit has not seen (five folds of {len(rows)}): F1 at thresholds "
        f"{before.micro_f1:.1f} before, {after.micro_f1:.1f} after; mean over labels "
        f"{before.macro_f1:.1f}, {after.macro_f1:.1f}; calibration error {before.ece:.1f}, "
        f"{after.ece:.1f}",
        soft_wrap=True,
        highlight=False,
    )
    return fit_labelled(artifact.calibration, raw, labels, ignored)


def _always_shown(
    labels: np.ndarray, ignored: np.ndarray, categories: CategoryList, console: Console
) -> np.ndarray:
    """Labels `(classes,)`, bool, that all photos show: when to leave them away cannot be fitted.

    Raises:
        InputError: when there is no label that some photos show and others do not.
    """
    fitted = contrasted(labels, ignored)
    always = (labels & ~ignored).any(0) & ~fitted
    listed = ", ".join(np.array(categories.names)[always])
    if not fitted.any():
        raise InputError(
            "--root: some photos must show a label that others do not, or nothing can be fitted "
            f"(all show: {listed or 'none'})"
        )
    if always.any():
        console.print(
            f"All photos show {listed}: the figures are without this, and its calibration moves "
            "only as that of all labels does. Photos that do not show it would fit it.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return np.asarray(always)


def _without_labels(options: CalibrateOptions, artifact: Artifact, console: Console) -> Calibration:
    files = list(ImageListing(options.photos))
    raw, rows = _raw_scores(options, files, console)
    if not len(rows):
        raise InputError(f"{', '.join(options.photos)}: no images there that can be read")
    if len(rows) < _FEW_UNLABELLED:
        console.print(f"{len(rows)} photos say little; {_FEW_UNLABELLED} or more say enough.")
    return fit_unlabelled(artifact.calibration, raw)


def _load(folder: Path) -> Artifact:
    try:
        return Artifact.load(folder)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def _labelled(fields: dict[str, str], categories: CategoryList) -> LabelledImages:
    try:
        return read_photos(DatasetSettings.model_validate(fields), categories)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg']}") from None
    except ValueError as error:
        raise InputError(str(error)) from None


def _raw_scores(
    options: CalibrateOptions, files: Sequence[Path], console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores `(photos, classes)` of what can be read, and which of the files these are."""
    try:
        tagger = Tagger.load(options.artifact, cache=options.cache)
    except ValueError as error:
        raise InputError(f"{options.artifact}: {error}") from None
    scores, rows = [np.zeros((0, len(tagger.names)))], []
    with StageProgress(console, "scoring", len(files)) as progress:
        for row, scored in enumerate(score_files(tagger, files, local_node().cpus)):
            if isinstance(scored, str):
                console.print(f"{files[row]}: {scored}", soft_wrap=True, markup=False)
            else:
                scores.append(scored[None])
                rows.append(row)
            progress.advance(1)
    return np.concatenate(scores), np.array(rows, dtype=int)
