"""The evaluation of tuned prompts, as a Ray task runs it: class features, scores, figures."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prompt_tuning.backbones.base import Geometry, VLMSettings
from prompt_tuning.captions import captions_at, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.datasets.registry import stored_images
from prompt_tuning.evaluation.baselines import ClassFeatures, MethodFeatures, untuned_baselines
from prompt_tuning.evaluation.compare import score_methods
from prompt_tuning.evaluation.influence import caption_influences
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics_file import Protocol, make_metrics
from prompt_tuning.evaluation.selection import (
    SelectingHalf,
    Selection,
    images_at,
    reported_rows,
    select_on_half,
)
from prompt_tuning.features import StoredFeatures
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.storage import canonical_json
from prompt_tuning.tagging.calibration import calibrate_on_captions, calibration_quality
from prompt_tuning.tuning.caption_set import CaptionSet, load_caption_sets
from prompt_tuning.tuning.scoring import ScoringSettings
from workers.evaluation_files import (
    CALIBRATION,
    CLASS_FEATURES,
    EXAMPLES,
    EXPLANATIONS,
    GEOMETRY,
    IDENTITY,
    METRICS,
    SELECTION,
)
from workers.loaded_vlm import loaded_vlm
from workers.tuning.job import read_classes, read_history

_EXAMPLES = 12
_TAGS_SHOWN = 3
_CAPTIONS_KEPT = 20


@dataclass(frozen=True)
class ImagesToMeasure:
    """Labelled images: the folders of their list (or of the scenes) and of their features.

    `split_seed`: draws the half of them that selects a seed; None: captions select.
    """

    folder: Path
    features: Path
    split_seed: int | None


@dataclass(frozen=True)
class EvaluationJob:
    """What an evaluation reads, by absolute paths; `images`: None to measure held-out captions.

    `tuned`: the folder of each seed's tuning stage. `margin`, `captions_per_item`: of the tuning.
    """

    protocol: Protocol
    captions: Path
    features: Path
    held_out: float
    cache: Path
    scoring: ScoringSettings
    tuned: dict[int, Path]
    images: ImagesToMeasure | None
    margin: float
    captions_per_item: int

    @property
    def categories(self) -> CategoryList:
        return self.protocol.categories

    @property
    def vlm(self) -> VLMSettings:
        return self.protocol.vlm


def evaluate_methods(job: EvaluationJob, folder: Path) -> None:
    """Compare the methods on the images that did not select, or without images on captions.

    Writes all files of the stage into the folder.

    Raises:
        NoCategoryShown: if the images that select, or those that do not, show no category.
    """
    protocol = job.protocol
    vlm = loaded_vlm(job.vlm, job.cache)
    geometry = job.scoring.resolve(vlm.geometry)
    train, held_out = load_caption_sets(job.captions, job.features, job.categories, job.held_out)
    tuned = {seed: read_classes(stage).to(vlm.device) for seed, stage in job.tuned.items()}
    chosen, selection = _best_seed(job), Selection()
    images, reported, left_out = None, np.arange(0), 0
    if job.images:
        assert protocol.dataset
        images = stored_images(protocol.dataset, job.images.folder, job.categories)
        if job.images.split_seed is not None:
            chosen, selection = select_on_half(
                SelectingHalf.of(images, job.images.features, job.images.split_seed),
                images,
                tuned,
                geometry,
                protocol.fusion,
                protocol.dataset,
                job.images.split_seed,
            )
        reported = reported_rows(images, selection)
        left_out = len(images.files) - len(reported)
        images = images_at(images, reported)
        items = StoredFeatures(job.images.features, torch.from_numpy(reported))
        labels, ignored = images.labels, images.ignored
    else:
        items = StoredFeatures(job.features, held_out.rows)
        labels, ignored = held_out.labels[held_out.rows].numpy(), None
    methods = MethodFeatures(untuned_baselines(vlm, job.categories, train), tuned)
    scores = score_methods(items, methods, geometry, protocol.fusion)
    coverage = CaptionCoverage.of(
        read_captions(job.captions, job.categories), job.categories, job.held_out
    )
    metrics = {
        **make_metrics(
            protocol,
            images,
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
    (folder / CALIBRATION).write_text(canonical_json(calibration.to_json()), "utf-8")
    if images:
        raw = method_scores(items, tuned[chosen], geometry, "mean")["fused"]
        metrics["calibration"] = calibration_quality(raw, labels, ignored, calibration)
    (folder / METRICS).write_text(json.dumps(metrics, allow_nan=False), "utf-8")
    (folder / IDENTITY).write_text(vlm.identity.model_dump_json(), "utf-8")
    (folder / GEOMETRY).write_text(geometry.model_dump_json(), "utf-8")
    (folder / SELECTION).write_text(
        canonical_json({"artifact_seed": chosen, **asdict(selection)}), "utf-8"
    )
    methods.save(folder / CLASS_FEATURES)
    first = methods.untuned["zero_shot"]
    explained = _explanations(job, first, tuned[chosen], train, geometry, chosen)
    (folder / EXPLANATIONS).write_text(
        json.dumps({"labels": explained}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    if images:
        fused = scores["tuned"][list(tuned).index(chosen)]["fused"]
        examples = _examples(job.categories, fused, images, reported)
        (folder / EXAMPLES).write_text(canonical_json(examples), "utf-8")


def _best_seed(job: EvaluationJob) -> int:
    """The seed with the lowest loss on held-out captions."""
    losses = {
        seed: min(entry["held_out_loss"] for entry in read_history(stage))
        for seed, stage in job.tuned.items()
    }
    return min(losses, key=losses.__getitem__)


def _explanations(
    job: EvaluationJob,
    first: ClassFeatures,
    tuned: ClassFeatures,
    train: CaptionSet,
    geometry: Geometry,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """The captions of most influence on each label."""
    found = caption_influences(
        first.pooled.cpu(),
        tuned.pooled.cpu(),
        train,
        job.margin,
        geometry.scale,
        job.captions_per_item,
        seed,
        _CAPTIONS_KEPT,
    )
    captions = captions_at(job.captions, job.categories, found.rows.flatten().tolist())
    names = job.categories.names
    return {
        name: [
            {
                "text": captions[row].text,
                "labels": [names[label] for label in captions[row].labels],
                "share": round(share, 5),
                "pull": round(pull, 5),
            }
            for row, share, pull in zip(*(of[c].tolist() for of in found), strict=True)
            if share > 0
        ]
        for c, name in enumerate(names)
    }


def _examples(
    categories: CategoryList, scores: np.ndarray, images: LabelledImages, rows: np.ndarray
) -> list[dict[str, Any]]:
    """Random images: index, true names, and the names with the highest scores.

    `rows`: the index of each scored image among all images of the plan.
    """
    names, labels = categories.names, images.labels
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
