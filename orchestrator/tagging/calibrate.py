"""`datafree calibrate`: score photos, fit sigmoids and thresholds to them, save a new artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from orchestrator.cluster.resources import local_node
from orchestrator.console import StageProgress
from orchestrator.errors import InputError, as_input_error
from orchestrator.paths import check_folder
from orchestrator.tagging.listing import ImageListing
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.evaluation.metrics import contrasted
from prompt_tuning.tagging.artifact import Artifact, Learned
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.photo_calibration import (
    cross_validated,
    fit_labelled,
    fit_unlabelled,
    unfitted,
)
from prompt_tuning.tagging.tag_stream import score_files
from prompt_tuning.tagging.tagger import Tagger

_MIN_LABELLED = 10
_FEW_UNLABELLED = 50


def calibrate_artifact(
    folder: Path,
    out: Path,
    *,
    cache: Path,
    console: Console,
    photos: list[str] | None = None,
    labelled: dict[str, str] | None = None,
) -> None:
    """Save a copy of an artifact that differs in its calibration only.

    `photos`: files, folders and patterns of photos without labels. `labelled`: fields of
    `DatasetSettings`, for labelled photos instead.

    Raises InputError for a mistake in the arguments.
    """
    check_new(out)
    with as_input_error():
        artifact = Artifact.load(folder)
    if artifact.calibration.labelled_photos:
        raise InputError(
            f"{folder}: was calibrated on labelled photos before, which would count twice; "
            "start from the artifact before that calibration"
        )
    if labelled:
        images = read_labelled(labelled, artifact.categories)
        raw, rows = _raw_scores(folder, images.files, cache, console)
        calibration, figures = _fit_labelled(artifact, images, raw, rows, console)
        taught = tuple(sorted({str(images.contents[row]) for row in rows}))
        artifact = replace(
            artifact,
            learned=Learned(
                by="calibrate",
                moved=False,
                parent=artifact.version,
                images=taught,
                figures=(figures,),
            ),
        )
    else:
        names = photos or []
        raw, rows = _raw_scores(folder, list(ImageListing(names)), cache, console)
        if not len(rows):
            raise InputError(f"{', '.join(names)}: no readable images found")
        if len(rows) < _FEW_UNLABELLED:
            console.print(f"{len(rows)} photos are few; use {_FEW_UNLABELLED} or more.")
        calibration = fit_unlabelled(artifact.calibration, raw)
    replace(artifact, calibration=calibration).save(out)
    console.print(f"{out}  (calibrated on {calibration.source})", soft_wrap=True)


def check_new(out: Path) -> None:
    """Check that an artifact can be written to `out`, a new folder. Raises InputError."""
    if out.exists():
        raise InputError(f"--out: {out} exists already; choose another name")
    check_folder(str(out.absolute().parent), "--out")


def _fit_labelled(
    artifact: Artifact, images: LabelledImages, raw: np.ndarray, rows: np.ndarray, console: Console
) -> tuple[Calibration, str]:
    """Fit on the readable images, at `rows`, and print how much better the tags become."""
    if len(rows) < _MIN_LABELLED:
        raise InputError(
            f"--root: at least {_MIN_LABELLED} readable photos are required (got {len(rows)}); "
            "20 to 100 work well"
        )
    if images.other_classes:
        console.print(images.describe_other_classes(), soft_wrap=True, markup=False)
    labels = images.labels[rows]
    ignored = np.zeros_like(labels) if images.ignored is None else images.ignored[rows]
    ignored = ignored | _always_shown(labels, ignored, artifact.categories, console)
    before = unfitted(artifact.calibration, raw).quality(labels, ignored)
    fitted = cross_validated(artifact.calibration, raw, labels, ignored)
    after = fitted.quality(labels, ignored)
    figures = (
        f"On photos held out from the fit (five folds of {len(rows)}): F1 at thresholds "
        f"{before.micro_f1:.1f} before, {after.micro_f1:.1f} after; mean over labels "
        f"{before.macro_f1:.1f}, {after.macro_f1:.1f}; calibration error {before.ece:.1f}, "
        f"{after.ece:.1f}"
    )
    console.print(figures, soft_wrap=True, highlight=False)
    return fit_labelled(artifact.calibration, raw, labels, ignored), figures


def _always_shown(
    labels: np.ndarray, ignored: np.ndarray, categories: CategoryList, console: Console
) -> np.ndarray:
    """The labels `(classes,)`, bool, that all photos show: these have no threshold to fit.

    Raises InputError unless at least one label is on some photos and not on others.
    """
    fitted = contrasted(labels, ignored)
    always = (labels & ~ignored).any(0) & ~fitted
    listed = ", ".join(np.array(categories.names)[always])
    if not fitted.any():
        raise InputError(
            "--root: at least one label must be on some photos and not on others, or nothing can "
            f"be fitted (on all photos: {listed or 'none'})"
        )
    if always.any():
        console.print(
            f"All photos show {listed}: the figures leave this out, and its calibration only "
            "follows that of all labels. Add photos that do not show it.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return np.asarray(always)


def read_labelled(fields: dict[str, str], categories: CategoryList) -> LabelledImages:
    """The labelled photos that fields of `DatasetSettings` name. Raises InputError."""
    try:
        settings = DatasetSettings.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg']}") from None
    with as_input_error():
        return read_photos(settings, categories)


def _raw_scores(
    artifact: Path, files: Sequence[Path], cache: Path, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores `(photos, classes)` of the files that can be read, and these files' indices."""
    with as_input_error(f"{artifact}: "):
        tagger = Tagger.load(artifact, cache=cache)
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
