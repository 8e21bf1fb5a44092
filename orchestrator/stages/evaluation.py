"""The evaluation stage: the methods compared on labelled images, or on held-out captions."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from orchestrator.errors import InputError
from orchestrator.stages.images import UNREADABLE, read_images
from prompt_tuning.backbones import load_vlm
from prompt_tuning.captions import read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.baselines import MethodFeatures, untuned_baselines
from prompt_tuning.evaluation.compare import (
    MethodScores,
    compare_methods,
    figures_without_meaning,
    score_methods,
)
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.selection import SelectingHalf, Selection, images_at, select_on_half
from prompt_tuning.features import FEATURES, StoredFeatures
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.storage import canonical_json
from prompt_tuning.tagging.calibration import calibrate_on_captions, calibration_quality
from prompt_tuning.tuning.caption_set import CaptionSet, load_caption_sets
from workers.tuning.job import read_classes, read_history

if TYPE_CHECKING:
    from orchestrator.plan.run import ImagesPlan, Plan

METRICS = "metrics.json"
CLASS_FEATURES = "class_features.safetensors"
EXAMPLES = "examples.json"
IDENTITY = "vlm_identity.json"
GEOMETRY = "geometry.json"
SELECTION = "selection.json"
CALIBRATION = "calibration.json"

_EXAMPLES = 12
_TAGS_SHOWN = 3


def write_evaluation(plan: Plan, staging: Path) -> None:
    """Compare the methods on the images that did not select, or without images on captions."""
    config, labelled = plan.config, plan.labelled
    vlm = load_vlm(config.vlm, cache=plan.cache)
    geometry = config.scoring.resolve(vlm.geometry)
    train, held_out = read_caption_sets(plan)
    tuned = {seed: read_classes(plan.tuning[seed].folder) for seed in plan.tuning}
    chosen, selection = _best_seed(plan), Selection()
    reported, left_out = np.arange(0), 0
    if labelled.images:
        images = read_images(labelled)
        if labelled.select:
            evaluation, fusion = config.evaluation, config.scoring.fusion
            chosen, selection = select_on_half(
                selecting_half(labelled, images),
                images,
                tuned,
                geometry,
                fusion,
                evaluation.dataset,
                evaluation.split_seed,
            )
        reported = reported_rows(labelled, images, selection)
        left_out = len(images.files) - len(reported)
        items, images = image_features_at(labelled, reported), images_at(images, reported)
        labels, ignored = images.labels, images.ignored
    else:
        items = StoredFeatures(plan.captions.folder / FEATURES, held_out.rows)
        labels, ignored = held_out.labels[held_out.rows].numpy(), None
    methods = MethodFeatures(untuned_baselines(vlm, plan.categories, train), tuned)
    scores = score_methods(items, methods, geometry, config.scoring.fusion)
    captions = read_captions(plan.knowledge.captions_file, plan.categories)
    coverage = CaptionCoverage.of(captions, plan.categories, config.captions.held_out)
    metrics = {
        **make_metrics(
            labelled,
            config.scoring.fusion,
            scores,
            labels,
            ignored,
            list(tuned),
            selection.describe(left_out),
            left_out,
        ),
        "captions": asdict(coverage),
    }
    calibration = calibrate_on_captions(tuned[chosen], held_out, geometry)
    (staging / CALIBRATION).write_text(canonical_json(calibration.to_json()), "utf-8")
    if labelled.images:
        raw = method_scores(items, tuned[chosen], geometry, "mean")["fused"]
        metrics["calibration"] = calibration_quality(raw, labels, ignored, calibration)
    (staging / METRICS).write_text(json.dumps(metrics, allow_nan=False), "utf-8")
    (staging / IDENTITY).write_text(vlm.identity.model_dump_json(), "utf-8")
    (staging / GEOMETRY).write_text(geometry.model_dump_json(), "utf-8")
    (staging / SELECTION).write_text(
        canonical_json({"artifact_seed": chosen, **asdict(selection)}), "utf-8"
    )
    methods.save(staging / CLASS_FEATURES)
    if labelled.images:
        fused = scores["tuned"][list(tuned).index(chosen)]["fused"]
        examples = _examples(plan.categories, fused, labels, reported)
        (staging / EXAMPLES).write_text(canonical_json(examples), "utf-8")


def read_caption_sets(plan: Plan) -> tuple[CaptionSet, CaptionSet]:
    """Training and held-out captions with their features."""
    return load_caption_sets(
        plan.knowledge.captions_file,
        plan.captions.folder / FEATURES,
        plan.categories,
        plan.config.captions.held_out,
    )


def reported_rows(plan: ImagesPlan, images: LabelledImages, selection: Selection) -> np.ndarray:
    """The indices of the images that did not select. Raises InputError if none shows a category."""
    rows = np.flatnonzero(~selection.among(images.files))
    if plan.select and not images.labels[rows].any():
        raise InputError(
            "evaluation.select_on: no image of the reported half shows a category; use more "
            "images, another evaluation.split_seed or select_on: text"
        )
    return rows


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
    except ValueError as error:
        raise InputError(f"evaluation.select_on: {error}") from None


def _best_seed(plan: Plan) -> int:
    """The seed with the lowest loss on held-out captions."""
    losses = {
        seed: min(entry["held_out_loss"] for entry in read_history(stage.folder))
        for seed, stage in plan.tuning.items()
    }
    return min(losses, key=losses.__getitem__)


def read_selection(file: Path) -> tuple[int, Selection]:
    """Read which seed became the artifact, and what it was selected on."""
    selection = json.loads(file.read_bytes())
    chosen = selection.pop("artifact_seed")
    return chosen, Selection(**{**selection, "selecting": tuple(selection["selecting"])})


def make_metrics(
    plan: ImagesPlan,
    fusion: str,
    scores: MethodScores,
    labels: np.ndarray,
    ignored: np.ndarray | None,
    seeds: list[int],
    selected_on: str,
    left_out: int,
) -> dict[str, Any]:
    """The content of the metrics file: the figures of all methods and the protocol.

    `labels`, `ignored`: `(items, classes)`, bool; the items are the plan's images, or held-out
    captions if it has no images. `seeds`: of the tuned method. `selected_on`: see
    `Selection.describe`. `left_out`: how many of the plan's images are left out of the items.
    """
    images = read_images(plan) if plan.images else None
    others = images.other_classes if images else ()
    names = np.array(plan.categories.names)
    unlabelled = np.zeros(len(names), dtype=bool) if ignored is None else ignored.all(0)
    positives = (labels if ignored is None else labels & ~ignored).any(0)
    return {
        "dataset": plan.settings.dataset if plan.images else "held_out_captions",
        "images": len(labels) if plan.images else 0,
        "protocol": {
            **_dataset_protocol(plan),
            "classes_evaluated": int(positives.sum()),
            "classes_without_positives": ", ".join(names[~positives & ~unlabelled]) or "none",
            "classes_that_the_data_set_does_not_label": ", ".join(names[unlabelled]) or "none",
            "classes_of_the_data_set_that_are_left_out": ", ".join(others) or "none",
            "average_precision": "all points, not interpolated; map_11_points: VOC 2007's",
            "mean": "over the classes that have a positive",
            "resolution": plan.vlm.resolution,
            "resize": "straight, no crop",
            "tiles": ", ".join(f"{n} × {n}" for n in plan.vlm.tiles) or "none",
            **({"patches": plan.vlm.patches} if plan.vlm.patches != "value" else {}),
            "fusion": fusion,
            "checkpoint": "lowest ranking loss on held-out captions (before `anchor_weight` acts)",
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
    settings = plan.settings
    if not plan.images:
        return {}
    if settings.dataset == "scenes":
        return {"scenes_seed": settings.scenes.seed, "scenes_size": settings.scenes.size}
    unreadable = json.loads((plan.images.folder / UNREADABLE).read_bytes())
    return {**settings.options(), "images_left_out_as_unreadable": len(unreadable)}


def _examples(
    categories: CategoryList, scores: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> list[dict[str, Any]]:
    """Random images: index, true names, and the names with the highest scores.

    `rows`: the index of each scored image among all images of the plan.
    """
    names = categories.names
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
    metrics: dict[str, Any] = json.loads((plan.evaluation.folder / METRICS).read_bytes())
    return metrics
