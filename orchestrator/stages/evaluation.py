"""The evaluation stage: the methods compared on labelled images, or on held-out captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from orchestrator.errors import InputError
from orchestrator.stages.images import UNREADABLE
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.metrics_file import Protocol
from prompt_tuning.evaluation.selection import (
    NoCategoryShown,
    SelectingHalf,
    Selection,
    reported_rows,
)
from prompt_tuning.features import FEATURES, StoredFeatures
from prompt_tuning.tuning.caption_set import CaptionSet, load_caption_sets
from workers.evaluation import EvaluationJob, ImagesToMeasure, evaluate_methods
from workers.evaluation_files import METRICS
from workers.failure import root_cause
from workers.single_task import in_task

if TYPE_CHECKING:
    from orchestrator.plan.run import ImagesPlan, Plan


def write_evaluation(plan: Plan, staging: Path) -> None:
    """Compare the methods in a Ray task. Raises InputError if too few images show a category."""
    gpus, threads = 1 if plan.resources.gpus else 0, plan.resources.threads()
    try:
        in_task("evaluation", gpus, threads, evaluate_methods, _job(plan), staging)
    except NoCategoryShown as error:
        raise _as_input_error(error) from None


def _job(plan: Plan) -> EvaluationJob:
    config, labelled = plan.config, plan.labelled
    images = None
    if labelled.images and labelled.features:
        images = ImagesToMeasure(
            labelled.images.folder,
            labelled.features.folder / FEATURES,
            labelled.settings.split_seed if labelled.select else None,
        )
    return EvaluationJob(
        protocol=protocol_of(labelled, config.scoring.fusion),
        captions=plan.knowledge.captions_file,
        features=plan.captions.folder / FEATURES,
        held_out=config.captions.held_out,
        cache=plan.cache,
        scoring=config.scoring,
        tuned={seed: stage.folder for seed, stage in plan.tuning.items()},
        images=images,
        margin=config.losses.margin,
        captions_per_item=config.tuning.captions_per_item,
    )


def protocol_of(plan: ImagesPlan, fusion: str) -> Protocol:
    """How the images of a plan are measured; their stage must be done."""
    dataset = plan.settings.dataset if plan.images else None
    return Protocol(dataset, _dataset_options(plan), plan.vlm, fusion, plan.categories)


def read_caption_sets(plan: Plan) -> tuple[CaptionSet, CaptionSet]:
    """Training and held-out captions with their features."""
    return load_caption_sets(
        plan.knowledge.captions_file,
        plan.captions.folder / FEATURES,
        plan.categories,
        plan.config.captions.held_out,
    )


def rows_to_report(images: LabelledImages, selection: Selection) -> np.ndarray:
    """The indices of the images that did not select. Raises InputError if none shows a category."""
    try:
        return reported_rows(images, selection)
    except NoCategoryShown as error:
        raise _as_input_error(error) from None


def image_features_at(plan: ImagesPlan, rows: np.ndarray) -> StoredFeatures:
    """The features of the plan's images at these indices."""
    assert plan.features is not None
    return StoredFeatures(plan.features.folder / FEATURES, torch.from_numpy(rows))


def selecting_half(plan: ImagesPlan, images: LabelledImages) -> SelectingHalf:
    """The half of the images that selects. Raises InputError if none of it shows a category."""
    assert plan.features is not None
    features = plan.features.folder / FEATURES
    try:
        return SelectingHalf.of(images, features, plan.settings.split_seed)
    except NoCategoryShown as error:
        raise _as_input_error(error) from None


def _as_input_error(error: NoCategoryShown) -> InputError:
    return InputError(f"evaluation.select_on: {root_cause(error)}")


def _dataset_options(plan: ImagesPlan) -> dict[str, Any]:
    settings = plan.settings
    if not plan.images:
        return {}
    if settings.dataset == "scenes":
        return {"scenes_seed": settings.scenes.seed, "scenes_size": settings.scenes.size}
    unreadable = json.loads((plan.images.folder / UNREADABLE).read_bytes())
    return {**settings.options(), "images_left_out_as_unreadable": len(unreadable)}


def read_metrics(plan: Plan) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((plan.evaluation.folder / METRICS).read_bytes())
    return metrics
