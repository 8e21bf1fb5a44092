"""The stages that measure: labelled images, their features, and the methods compared on them."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.console import StageProgress
from orchestrator.errors import InputError
from orchestrator.plan.run import ImagesPlan, Plan
from orchestrator.stages.tuning import FEATURES, caption_coverage, read_caption_sets
from prompt_tuning.datasets.labelled_images import LabelledImages, readable
from prompt_tuning.datasets.registry import read_photos
from prompt_tuning.datasets.scenes import compose_scenes, read_scenes
from prompt_tuning.evaluation.baselines import (
    MethodFeatures,
    MethodScores,
    compare_methods,
    figures_without_meaning,
    method_scores,
    score_methods,
    untuned_baselines,
)
from prompt_tuning.evaluation.selection import SelectingHalf, Selection, images_at, select_on_half
from prompt_tuning.features import Features, load_features, save_features
from prompt_tuning.storage import canonical_json
from prompt_tuning.tagging.calibration import calibrate_on_captions, calibration_quality
from workers.tuning.job import read_classes, read_history

METRICS = "metrics.json"
CLASS_FEATURES = "class_features.safetensors"
EXAMPLES = "examples.json"
IDENTITY = "vlm_identity.json"
GEOMETRY = "geometry.json"
SELECTION = "selection.json"
CALIBRATION = "calibration.json"
PHOTOS = "photos.npz"
UNREADABLE = "unreadable.json"

_EXAMPLES = 12
_TAGS_SHOWN = 3
_UNREADABLE_SHOWN = 10
_log = logging.getLogger(__name__)


def write_images(plan: ImagesPlan, stamps: Path | None, staging: Path) -> None:
    """Compose the scenes, or list the labelled photos, which stay where they are.

    Photos that cannot be read are left out, and listed with the reason.
    """
    if plan.config.evaluation.dataset == "scenes":
        assert stamps is not None
        compose_scenes(stamps, plan.config.evaluation.scenes, staging)
        return
    try:
        photos, unreadable = readable(read_photos(plan.config.evaluation, plan.categories))
    except (ValueError, OSError) as error:
        raise InputError(f"evaluation.root: {error}") from None
    photos.save(staging / PHOTOS)
    reasons = {str(file): reason for file, reason in unreadable.items()}
    (staging / UNREADABLE).write_text(canonical_json(reasons), "utf-8")
    if unreadable:
        assert plan.images is not None
        _log.warning(
            "%d of %d images cannot be read and are left out (all are in %s):\n%s",
            len(unreadable),
            len(unreadable) + len(photos.files),
            plan.images.folder / UNREADABLE,
            "\n".join(list(reasons.values())[:_UNREADABLE_SHOWN]),
        )


def read_images(plan: ImagesPlan) -> LabelledImages:
    """The labelled images of the plan."""
    assert plan.images is not None
    if plan.config.evaluation.dataset == "scenes":
        return read_scenes(plan.images.folder, plan.categories)
    return LabelledImages.load(plan.images.folder / PHOTOS)


def write_image_features(plan: ImagesPlan, console: Console, staging: Path) -> None:
    """Encode all images once, in Ray tasks."""
    from workers.features import encode_images

    assert plan.image_features is not None
    files = read_images(plan).files
    connect(plan.resources.cpus, plan.resources.gpus)
    with StageProgress(console, "image features", len(files)) as progress:
        features = encode_images(
            files,
            plan.config.vlm,
            plan.cache,
            plan.image_features.parts,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )
    save_features(staging / FEATURES, features)


def write_evaluation(plan: Plan, staging: Path) -> None:
    """Compare the methods on the images, or on held-out captions where there are no images.

    Where a half of the images selects, the others are all that is compared on.
    """
    from prompt_tuning.backbones import load_vlm

    config = plan.config
    vlm = load_vlm(config.vlm, cache=plan.cache)
    geometry = config.scoring.resolve(vlm.geometry)
    train, held_out = read_caption_sets(plan)
    tuned = {seed: read_classes(plan.tuning[seed].folder) for seed in plan.tuning}
    chosen, selection = _best_seed(plan), Selection()
    reported, left_out = np.arange(0), 0
    if plan.images:
        images = read_images(plan)
        if plan.images_select:
            evaluation, fusion = config.evaluation, config.scoring.fusion
            chosen, selection = select_on_half(
                selecting_half(plan, images),
                images,
                tuned,
                geometry,
                fusion,
                evaluation.dataset,
                evaluation.split_seed,
            )
        reported = reported_rows(plan, images, selection)
        left_out = len(images.files) - len(reported)
        items, images = image_features_at(plan, reported), images_at(images, reported)
        labels, ignored = images.labels, images.ignored
    else:
        of_text = held_out.load()
        items, labels, ignored = of_text.features, of_text.labels.numpy(), None
    methods = MethodFeatures(untuned_baselines(vlm, plan.categories, train), tuned)
    scores = score_methods(items, methods, geometry, config.scoring.fusion)
    told = selection.told(left_out)
    metrics = {
        **make_metrics(plan, scores, labels, ignored, list(tuned), told, left_out),
        "captions": asdict(caption_coverage(plan)),
    }
    calibration = calibrate_on_captions(tuned[chosen], held_out, geometry)
    (staging / CALIBRATION).write_text(canonical_json(calibration.to_json()), "utf-8")
    if plan.images:
        raw = method_scores(items, tuned[chosen], geometry, "mean")["fused"]
        metrics["calibration"] = calibration_quality(raw, labels, ignored, calibration)
    (staging / METRICS).write_text(json.dumps(metrics, allow_nan=False), "utf-8")
    (staging / IDENTITY).write_text(vlm.identity.model_dump_json(), "utf-8")
    (staging / GEOMETRY).write_text(geometry.model_dump_json(), "utf-8")
    (staging / SELECTION).write_text(
        canonical_json({"artifact_seed": chosen, **asdict(selection)}), "utf-8"
    )
    methods.save(staging / CLASS_FEATURES)
    if plan.images:
        of_chosen = scores["tuned"][list(tuned).index(chosen)]["fused"]
        examples = _examples(plan, of_chosen, labels, reported)
        (staging / EXAMPLES).write_text(canonical_json(examples), "utf-8")


def reported_rows(plan: Plan, images: LabelledImages, selection: Selection) -> np.ndarray:
    """The places of the images that did not select, in their order.

    Raises:
        InputError: when they show no category.
    """
    rows = np.flatnonzero(~selection.among(images.files))
    if plan.images_select and not images.labels[rows].any():
        raise InputError(
            "evaluation.select_on: the half that is reported shows no category; more images, "
            "another evaluation.split_seed or select_on: text would do"
        )
    return rows


def image_features_at(plan: Plan, rows: np.ndarray) -> Features:
    """The features of the plan's images at these places."""
    assert plan.image_features is not None
    return load_features(plan.image_features.folder / FEATURES).take(torch.from_numpy(rows))


def selecting_half(plan: Plan, images: LabelledImages) -> SelectingHalf:
    """The half of the plan's images that chooses.

    Raises:
        InputError: when it shows no category.
    """
    assert plan.image_features is not None
    features = plan.image_features.folder / FEATURES
    try:
        return SelectingHalf.of(images, features, plan.config.evaluation.split_seed)
    except ValueError as error:
        raise InputError(f"evaluation.select_on: {error}") from None


def _best_seed(plan: Plan) -> int:
    """The seed with the lowest loss on held-out captions, where no image has a say."""
    losses = {
        seed: min(entry["held_out_loss"] for entry in read_history(stage.folder))
        for seed, stage in plan.tuning.items()
    }
    return min(losses, key=losses.__getitem__)


def read_selection(file: Path) -> tuple[int, Selection]:
    """Read which seed became the artifact, and what chose it."""
    told = json.loads(file.read_bytes())
    chosen = told.pop("artifact_seed")
    return chosen, Selection(**{**told, "selecting": tuple(told["selecting"])})


def make_metrics(
    plan: ImagesPlan,
    scores: MethodScores,
    labels: np.ndarray,
    ignored: np.ndarray | None,
    seeds: list[int],
    selected_on: str,
    left_out: int,
) -> dict[str, Any]:
    """The metrics file: the figures of all methods, and how they were obtained.

    `labels`, `ignored`: `(items, classes)`, bool; the items are the plan's images, or held-out
    captions where it has none. `seeds`: those of the tuned method. `selected_on`: what chose the
    artifact, in words. `left_out`: how many of the plan's images did, and are not among the items.
    """
    images = read_images(plan) if plan.images else None
    others = images.other_classes if images else ()
    names = np.array(plan.categories.names)
    unlabelled = np.zeros(len(names), dtype=bool) if ignored is None else ignored.all(0)
    positives = (labels if ignored is None else labels & ~ignored).any(0)
    return {
        "dataset": plan.config.evaluation.dataset if plan.images else "held_out_captions",
        "images": len(labels) if plan.images else 0,
        "protocol": {
            **_dataset_protocol(plan),
            "classes_evaluated": int(positives.sum()),
            "classes_without_positives": ", ".join(names[~positives & ~unlabelled]) or "none",
            "classes_that_the_data_set_does_not_label": ", ".join(names[unlabelled]) or "none",
            "classes_of_the_data_set_that_are_left_out": ", ".join(others) or "none",
            "average_precision": "all points, not interpolated; map_11_points: VOC 2007's",
            "mean": "over the classes that have a positive",
            "resolution": plan.config.vlm.resolution,
            "resize": "straight, no crop",
            "fusion": plan.config.scoring.fusion,
            "checkpoint": "lowest ranking loss on held-out captions (before leaning back)",
            "selected_on": selected_on,
            **({"images_left_out_as_they_selected": left_out} if left_out else {}),
            "seeds": ", ".join(map(str, seeds)),
            "ap_of": "fused scores, mean over seeds",
            "intervals": "95 %, bootstrap over the images, fused scores; differences are paired",
        },
        "notes": [
            *([images.describe_other_classes()] if images and others else []),
            *figures_without_meaning(
                labels, ignored, plan.categories.names, "images" if images else "held-out captions"
            ),
        ],
        **compare_methods(scores, labels, plan.categories, ignored),
    }


def _dataset_protocol(plan: ImagesPlan) -> dict[str, Any]:
    settings = plan.config.evaluation
    if not plan.images:
        return {}
    if settings.dataset == "scenes":
        return {"scenes_seed": settings.scenes.seed, "scenes_size": settings.scenes.size}
    unreadable = json.loads((plan.images.folder / UNREADABLE).read_bytes())
    return {**settings.options(), "images_left_out_as_unreadable": len(unreadable)}


def _examples(
    plan: Plan, scores: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> list[dict[str, Any]]:
    """Images drawn at random, not picked: index, true names, best-scored names with scores.

    `rows`: the place of each scored image among all of the plan's.
    """
    names = plan.categories.names
    count = min(_EXAMPLES, len(labels))
    drawn = sorted(random.Random(0).sample(range(len(labels)), count))
    return [
        {
            "image": int(rows[i]),
            "true": [names[c] for c in np.flatnonzero(labels[i])],
            "predicted": [
                [names[c], round(float(scores[i, c]), 4)]
                for c in np.argsort(-scores[i], kind="stable")[:_TAGS_SHOWN]
            ],
        }
        for i in drawn
    ]


def read_metrics(plan: Plan) -> dict[str, Any]:
    """The metrics file that the evaluation stage wrote."""
    metrics: dict[str, Any] = json.loads((plan.evaluation.folder / METRICS).read_bytes())
    return metrics
