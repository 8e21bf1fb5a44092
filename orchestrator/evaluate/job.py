"""`evaluate`: a finished run on a data set, or two runs on the same images.

Nothing here feeds back: the run's artifact, thresholds and choices stay as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import Resources, find_resources
from orchestrator.config.models import EvaluationSettings
from orchestrator.console import status
from orchestrator.errors import InputError
from orchestrator.evaluate.dataset_choice import chosen_settings, evaluation_name, measured_on
from orchestrator.pages.evaluation_page import (
    EvaluationData,
    Mistake,
    against_line,
    lead,
    render_evaluation,
)
from orchestrator.pages.html import EXAMPLE_SIDE, between
from orchestrator.pages.metrics_summary import best_baseline, evaluated_on
from orchestrator.paths import check_folder
from orchestrator.plan.run import ImagesPlan, plan_images, text_side
from orchestrator.runs.finished_run import FinishedRun, read_run
from orchestrator.runs.results import write_metrics
from orchestrator.runs.stage_work import images_work
from orchestrator.stages.evaluation import (
    make_metrics,
)
from orchestrator.stages.images import read_images
from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.stamps import StampsUnavailable, fetch_stamps, stamps_source
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.compare import (
    RESAMPLES,
    SCORE_KINDS,
    MethodScores,
    method_scores,
    precision_recall,
    score_methods,
)
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.evaluation.selection import images_at
from prompt_tuning.features import FEATURES, Features, load_features
from prompt_tuning.images import small_jpeg
from prompt_tuning.label_names import LabelNames
from prompt_tuning.storage import write_atomic
from prompt_tuning.tagging.calibration import calibration_quality
from workers.stage import run_stage

_MISTAKES = 16
_CURVE_POINTS = 40


def evaluate(
    run_folder: Path,
    options: dict[str, Any],
    against: Path | None,
    cache: str | None,
    console: Console,
) -> None:
    """Measure a run's methods on a data set; write its metrics file and a page, print the table.

    Images on which either run was selected are left out, in whatever data set they turn up.

    `options`: as in `chosen_settings`.

    Raises:
        InputError: for what a person has to change.
    """
    run = read_run(run_folder)
    other = read_run(against) if against else None
    settings = chosen_settings(run.config.evaluation, options)
    place = check_folder(
        cache or os.environ.get("DATAFREE_CACHE") or run.config.paths.cache, "paths.cache"
    )
    resources = find_resources()
    stamps = _stamps(place, console) if settings.dataset == "scenes" else None
    plan = _plan(run, run, settings, resources, place, stamps)
    other_plan = _plan(other, run, settings, resources, place, stamps) if other else None
    with _cluster_left_at_the_end():
        for one in (run, other):
            if one:
                _check_vlm(one, place, console)
        listed = _images(plan, stamps, console)
        selecting = _selecting(run, settings, listed)
        theirs = _selecting(other, settings, listed) if other else np.zeros_like(selecting)
        rows = np.flatnonzero(~(selecting | theirs))
        images = images_at(listed, rows)
        if not images.labels.any():
            raise InputError(
                "--dataset: every image that shows a category chose an artifact, of this run or of "
                "--against; name other images"
            )
        if other:
            _check_shared(run, other, images)
        items = _features(plan, stamps, console).take(torch.from_numpy(rows))
        scores = score_methods(items, run.methods, run.artifact.geometry, run.artifact.fusion)
        metrics = make_metrics(
            plan,
            run.artifact.fusion,
            scores,
            images.labels,
            images.ignored,
            list(run.methods.tuned),
            run.selection.describe(int(selecting.sum())),
            len(listed.files) - len(rows),
        )
        artifact = run.artifact
        raw = method_scores(items, artifact.classes, artifact.geometry, "mean")["fused"]
        metrics["calibration"] = calibration_quality(
            raw, images.labels, images.ignored, artifact.calibration
        )
        if other and other_plan:
            of_other = _features(other_plan, stamps, console).take(torch.from_numpy(rows))
            metrics["against"] = _compare(run, scores, other, of_other, images)
            if other.selection.selecting:
                told = other.selection.describe(int(theirs.sum()))
                metrics["protocol"]["other_run_selected_on"] = told
    page = render_evaluation(_page(run, items, scores, images, metrics))
    name = evaluation_name(settings, run.config.evaluation)
    if other and (theirs & ~selecting).any():  # fewer images than the run's own figures are of
        name += f"-against-{other.folder.name}"
    page_file = run.folder / f"evaluation-{name}.html"
    write_atomic(page_file, page.encode())
    metrics_file = write_metrics(run.folder, name, metrics)
    _print(run, metrics, (metrics_file, page_file), console)


def _selecting(
    run: FinishedRun, settings: EvaluationSettings, images: LabelledImages
) -> np.ndarray:
    """Which images had a say in the run's artifact: `(images,)`, bool.

    Raises:
        InputError: when they are among the images by their description, but not by their bytes.
    """
    among = run.selection.among(images.files)
    same = measured_on(settings) == measured_on(run.config.evaluation)
    if same and among.sum() < len(run.selection.selecting):
        raise InputError(
            f"{run.folder}: the images that chose its artifact are no longer the same, so they "
            "cannot be left out; run its config again, or name other images"
        )
    return among


def _stamps(cache: Path, console: Console) -> Path:
    try:
        with status(console, "looking for the cut-outs of the scenes …"):
            return stamps_source(cache) or fetch_stamps(cache)
    except StampsUnavailable as error:
        raise InputError(f"--dataset: no scenes: {error}") from None


def _plan(
    of: FinishedRun,
    run: FinishedRun,
    settings: EvaluationSettings,
    resources: Resources,
    cache: Path,
    stamps: Path | None,
) -> ImagesPlan:
    """The images over the categories of `run`, and the features of them that `of` needs."""
    categories, vlm = run.artifact.categories, of.config.vlm
    vlm_text = text_side(vlm, resources)
    return plan_images(settings, vlm, resources, cache, categories, stamps, vlm_text)


@contextmanager
def _cluster_left_at_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        disconnect()


def _check_vlm(run: FinishedRun, cache: Path, console: Console) -> None:
    """Refuse a VLM whose features the artifact's class features do not go with."""
    try:
        with status(console, "looking at the image–text model …"):
            fetch_weights(run.config.vlm)
            vlm = load_vlm(run.config.vlm, cache=cache)
    except ValueError as error:
        raise InputError(str(error)) from None
    tuned_for, here = run.artifact.vlm, vlm.identity
    if names := run.artifact.differs_in(vlm):
        told = [
            f"{name} ({getattr(tuned_for, name)}, here {getattr(here, name)})" for name in names
        ]
        raise InputError(
            f"{run.folder}: the artifact was tuned for another image–text model than its "
            f"config.yaml names; it differs in {', '.join(told)}"
        )


def _images(plan: ImagesPlan, stamps: Path | None, console: Console) -> LabelledImages:
    """The labelled images, listed or composed unless they have been before."""
    assert plan.images is not None
    run_stage(plan.images, images_work(plan, stamps, console)[plan.images])
    images = read_images(plan)
    if not images.labels.any():
        raise InputError("--dataset: no image shows any category of the artifact")
    return images


def _check_shared(run: FinishedRun, other: FinishedRun, images: LabelledImages) -> None:
    """Refuse two runs without a common class that the images show."""
    own, _ = _shared_classes(run, other)
    if not images.labels[:, own].any():
        raise InputError(
            f"--against: {other.folder} has none of the classes that the images show; categories "
            "are matched by name"
        )


def _shared_classes(run: FinishedRun, other: FinishedRun) -> tuple[list[int], list[int]]:
    """Places of the classes that both runs have, by name, on the classes axis of each."""
    others = LabelNames(other.artifact.categories.names)
    places = {c: others.find(name) for c, name in enumerate(run.artifact.categories.names)}
    shared = {c: place for c, place in places.items() if place is not None}
    return list(shared), list(shared.values())


def _features(plan: ImagesPlan, stamps: Path | None, console: Console) -> Features:
    """The images' features, encoded unless they have been before."""
    assert plan.features is not None
    run_stage(plan.features, images_work(plan, stamps, console)[plan.features])
    return load_features(plan.features.folder / FEATURES)


def _compare(
    run: FinishedRun,
    scores: MethodScores,
    other: FinishedRun,
    items: Features,
    images: LabelledImages,
) -> dict[str, Any]:
    """The tuned methods of two runs on the same images, over the classes that both have, 0-100.

    `items`: the images' features by the other run's VLM. Both sides are judged by the labels over
    the categories of `run`.
    """
    own, theirs = _shared_classes(run, other)
    labels = images.labels[:, own]
    ignored = None if images.ignored is None else images.ignored[:, own]
    geometry, fusion = other.artifact.geometry, other.artifact.fusion
    sides = (
        [of_seed["fused"][:, own] for of_seed in scores["tuned"]],
        [
            method_scores(items, classes, geometry, fusion)["fused"][:, theirs]
            for classes in other.methods.tuned.values()
        ],
    )
    this, that = (
        100 * float(np.mean([mean_average_precision(of, labels, ignored) for of in side]))
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


def _page(
    run: FinishedRun,
    items: Features,
    scores: MethodScores,
    images: LabelledImages,
    metrics: dict[str, Any],
) -> EvaluationData:
    artifact = run.artifact
    tuned = method_scores(items, artifact.classes, artifact.geometry, artifact.fusion)["fused"]
    baseline = best_baseline({method: of["fused"] for method, of in metrics["map"].items()})
    assert baseline is not None
    untuned = scores[baseline][0]["fused"]
    labels, ignored = images.labels, images.ignored
    counted = np.ones_like(labels) if ignored is None else ~ignored
    curves = {}
    for c, name in enumerate(artifact.categories.names):
        rows = counted[:, c]
        if labels[rows, c].any():
            tuned_points, untuned_points = (
                precision_recall(by_branch[rows, c], labels[rows, c], _CURVE_POINTS)
                for by_branch in (tuned, untuned)
            )
            curves[name] = (tuned_points, untuned_points)
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
    """Of each class the wrong image with the highest score, each image once, highest first.

    `scores`, `wrong`: `(images, classes)`; wrong where a class is not shown, for certain.
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
    if "against" in metrics:
        line = against_line(metrics["against"])
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    left_out = metrics["protocol"].get("images_left_out_as_unreadable", 0)
    if left_out:
        console.print(f"Left out, for they cannot be read: {left_out} of the images.")
    if run.config.vlm.kind == "embedded":
        console.print(
            "Figures of the embedded model, which is not CLIP (its image side saw ImageNet)."
        )
    for file in written:
        console.print(str(file), soft_wrap=True, highlight=False, markup=False)
