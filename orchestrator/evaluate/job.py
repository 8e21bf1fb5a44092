"""`evaluate`: measure a finished run on a data set, or compare two runs on the same images.

The run's artifact and thresholds stay as they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.config.models import EvaluationSettings
from orchestrator.console import status
from orchestrator.errors import InputError
from orchestrator.evaluate.adapted import measure_adapted, read_adapted, taught
from orchestrator.evaluate.comparison import compare_runs, shared_classes
from orchestrator.evaluate.dataset_choice import chosen_settings, evaluation_name, measured_on
from orchestrator.pages.evaluation_page import (
    EvaluationData,
    Mistake,
    compared_lines,
    lead,
    render_evaluation,
)
from orchestrator.pages.html import EXAMPLE_SIDE, between
from orchestrator.pages.metrics_summary import best_baseline, evaluated_on, fused_scores
from orchestrator.paths import check_folder
from orchestrator.plan.run import ImagesPlan, plan_images
from orchestrator.runs.finished_run import FinishedRun, read_run
from orchestrator.runs.results import write_metrics
from orchestrator.runs.stage_work import images_work
from orchestrator.stages.evaluation import protocol_of
from orchestrator.stages.images import read_images
from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.stamps import StampsUnavailable, fetch_stamps, stamps_source
from prompt_tuning.evaluation.compare import MethodScores, precision_recall, score_methods
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics_file import make_metrics
from prompt_tuning.evaluation.selection import images_at
from prompt_tuning.features import FEATURES, FeatureSource, StoredFeatures
from prompt_tuning.images import small_jpeg
from prompt_tuning.storage import write_atomic
from prompt_tuning.tagging.calibration import calibration_quality
from workers.stage import run_stage

_MISTAKES = 16
_CURVE_POINTS = 40


def evaluate(
    run_folder: Path,
    options: dict[str, Any],
    against: Path | None,
    adapted_folder: Path | None,
    cache: str | None,
    console: Console,
) -> None:
    """Measure a run's methods on a data set; write a metrics file and a page, and print a table.

    Images that either run used for selection are left out, whatever the data set, and so are those
    that taught the adapted artifact. `options`: as in `chosen_settings`. Raises InputError.
    """
    run = read_run(run_folder)
    adapted = read_adapted(adapted_folder, run) if adapted_folder else None
    other = read_run(against) if against else None
    settings = chosen_settings(run.config.evaluation, options)
    place = check_folder(
        cache or os.environ.get("DATAFREE_CACHE") or run.config.paths.cache, "paths.cache"
    )
    resources = find_resources()
    stamps = _stamps(place, console) if settings.dataset == "scenes" else None

    def plan_for(each: FinishedRun) -> ImagesPlan:
        """The images with labels over the categories of `run`, and their features for `each`."""
        vlm, categories = each.config.vlm, run.artifact.categories
        return plan_images(settings, vlm, resources, place, categories, stamps)

    plan = plan_for(run)
    other_plan = plan_for(other) if other else None
    try:
        for each in filter(None, (run, other)):
            _check_vlm(each, place, console)
        listed = _images(plan, stamps, console)
        selecting = _selecting(run, settings, listed)
        theirs = _selecting(other, settings, listed) if other else np.zeros_like(selecting)
        teaching = taught(adapted, listed)
        rows = np.flatnonzero(~(selecting | theirs | teaching))
        images = images_at(listed, rows)
        if not images.labels.any():
            raise InputError(
                "--dataset: every image that shows a category taught the artifact, or was used by "
                "a run for selection; name other images"
            )
        shared = shared_classes(run, other, images) if other else []
        items = _features(plan, stamps, console).at(torch.from_numpy(rows))
        scores = score_methods(items, run.methods, run.artifact.geometry, run.artifact.fusion)
        metrics = make_metrics(
            protocol_of(plan, run.artifact.fusion),
            images,
            scores,
            images.labels,
            images.ignored,
            list(run.methods.tuned),
            run.selection.describe(int(selecting.sum())),
            int((selecting | theirs).sum()),
        )
        artifact = run.artifact
        raw = method_scores(items, artifact.classes, artifact.geometry, "mean")["fused"]
        metrics["calibration"] = calibration_quality(
            raw, images.labels, images.ignored, artifact.calibration
        )
        if adapted and adapted_folder:
            metrics["adapted"] = measure_adapted(adapted_folder, adapted, scores, items, images)
            metrics["protocol"]["images_left_out_as_they_taught"] = int(teaching.sum())
        if other and other_plan:
            other_items = _features(other_plan, stamps, console).at(torch.from_numpy(rows))
            metrics["against"] = compare_runs(scores, other, other_items, images, shared)
            if other.selection.selecting:
                metrics["protocol"]["other_run_selected_on"] = other.selection.describe(
                    int(theirs.sum())
                )
    finally:
        disconnect()
    page = render_evaluation(_page(run, items, scores, images, metrics))
    name = evaluation_name(settings, run.config.evaluation)
    if other and (theirs & ~selecting).any():  # fewer images than for the run's own figures
        name += f"-against-{other.folder.name}"
    if adapted:
        name += f"-adapted-{adapted.version}"
    page_file = run.folder / f"evaluation-{name}.html"
    write_atomic(page_file, page.encode())
    metrics_file = write_metrics(run.folder, name, metrics)
    _print(run, metrics, (metrics_file, page_file), console)


def _selecting(
    run: FinishedRun, settings: EvaluationSettings, images: LabelledImages
) -> np.ndarray:
    """Which images the run used for selection: `(images,)`, bool."""
    among = run.selection.among(images.files)
    same = measured_on(settings) == measured_on(run.config.evaluation)
    if same and among.sum() < len(run.selection.selecting):
        raise InputError(
            f"{run.folder}: the images that it used for selection have changed, so they cannot be "
            "left out; run its config again, or name other images"
        )
    return among


def _stamps(cache: Path, console: Console) -> Path:
    try:
        with status(console, "looking for the cut-outs of the scenes …"):
            return stamps_source(cache) or fetch_stamps(cache)
    except StampsUnavailable as error:
        raise InputError(f"--dataset: no scenes: {error}") from None


def _check_vlm(run: FinishedRun, cache: Path, console: Console) -> None:
    """Raise if the config's VLM is not the one that the artifact was tuned for."""
    try:
        with status(console, "looking at the image–text model …"):
            fetch_weights(run.config.vlm)
            vlm = load_vlm(run.config.vlm, cache=cache)
    except ValueError as error:
        raise InputError(str(error)) from None
    tuned_for, here = run.artifact.vlm, vlm.identity
    if names := run.artifact.differs_in(vlm):
        fields = [
            f"{name} ({getattr(tuned_for, name)}, here {getattr(here, name)})" for name in names
        ]
        raise InputError(
            f"{run.folder}: the artifact was tuned for another image–text model than the one in "
            f"config.yaml; it differs in {', '.join(fields)}"
        )


def _images(plan: ImagesPlan, stamps: Path | None, console: Console) -> LabelledImages:
    """The labelled images, from the cache if they were listed or composed before."""
    assert plan.images is not None
    run_stage(plan.images, images_work(plan, stamps, console)[plan.images])
    images = read_images(plan)
    if not images.labels.any():
        raise InputError("--dataset: no image shows any category of the artifact")
    return images


def _features(plan: ImagesPlan, stamps: Path | None, console: Console) -> StoredFeatures:
    """The images' features, from the cache if they were encoded before."""
    assert plan.features is not None
    run_stage(plan.features, images_work(plan, stamps, console)[plan.features])
    return StoredFeatures(plan.features.folder / FEATURES)


def _page(
    run: FinishedRun,
    items: FeatureSource,
    scores: MethodScores,
    images: LabelledImages,
    metrics: dict[str, Any],
) -> EvaluationData:
    artifact = run.artifact
    tuned = method_scores(items, artifact.classes, artifact.geometry, artifact.fusion)["fused"]
    baseline = best_baseline(fused_scores(metrics))
    assert baseline is not None
    untuned = scores[baseline][0]["fused"]
    labels, ignored = images.labels, images.ignored
    counted = np.ones_like(labels) if ignored is None else ~ignored
    curves = {}
    for c, name in enumerate(artifact.categories.names):
        rows = counted[:, c]
        if labels[rows, c].any():
            curves[name] = (
                precision_recall(tuned[rows, c], labels[rows, c], _CURVE_POINTS),
                precision_recall(untuned[rows, c], labels[rows, c], _CURVE_POINTS),
            )
    return EvaluationData(
        run=run.config.name,
        vlm=f"{run.config.vlm.kind} {run.config.vlm.model}",
        embedded=run.config.vlm.kind == "embedded",
        metrics=metrics,
        curves=curves,
        mistakes=_mistakes(tuned, ~labels & counted, images, artifact.categories.names),
    )


def _mistakes(
    scores: np.ndarray, wrong: np.ndarray, images: LabelledImages, names: tuple[str, ...]
) -> list[Mistake]:
    """The highest wrong score of each class, each image once, highest first.

    `scores`, `wrong`: `(images, classes)`; `wrong`: the image certainly does not show the class.
    """
    highest = np.where(wrong, scores, -np.inf)
    mistakes: list[Mistake] = []
    while len(mistakes) < _MISTAKES and np.isfinite(highest).any():
        i, c = np.unravel_index(highest.argmax(), highest.shape)
        mistakes.append(
            Mistake(
                image=small_jpeg(images.files[i], EXAMPLE_SIDE),
                name=names[c],
                score=float(scores[i, c]),
                true=[names[k] for k in np.flatnonzero(images.labels[i])],
            )
        )
        highest[i], highest[:, c] = -np.inf, -np.inf
    return mistakes


def _print(
    run: FinishedRun, metrics: dict[str, Any], written: tuple[Path, ...], console: Console
) -> None:
    table = Table("method", *SCORE_KINDS, "95 %", title=f"mAP on {evaluated_on(metrics)}")
    for method, by_branch in metrics["map"].items():
        figures = (f"{by_branch[branch]:.1f}" for branch in SCORE_KINDS)
        table.add_row(method, *figures, between(metrics["ci"].get(method)))
    console.print(table)
    for note in metrics["notes"]:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(lead(metrics), soft_wrap=True, highlight=False, markup=False)
    for line in compared_lines(metrics):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    left_out = metrics["protocol"].get("images_left_out_as_unreadable", 0)
    if left_out:
        console.print(f"Left out because they cannot be read: {left_out} of the images.")
    if run.config.vlm.kind == "embedded":
        console.print(
            "Figures of the embedded model, which is not CLIP (its image side saw ImageNet)."
        )
    for file in written:
        console.print(str(file), soft_wrap=True, highlight=False, markup=False)
