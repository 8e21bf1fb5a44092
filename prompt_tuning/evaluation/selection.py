"""Selection on labelled images: one half of them selects, and only the other is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import FeatureSource, StoredFeatures
from prompt_tuning.storage import file_digest


class NoCategoryShown(ValueError):
    """Images that are to select, or to be reported, show no category."""


def split_halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the half that selects and of the half that is reported, both ascending.

    If the count is odd, the reported half has one more.
    """
    drawn = np.random.default_rng(seed).permutation(count)
    return np.sort(drawn[: count // 2]), np.sort(drawn[count // 2 :])


@dataclass(frozen=True)
class Selection:
    """The labelled images that selected the seed whose prompts became the artifact.

    `selecting`: their SHA-256. `images`: how many images of `dataset` they were drawn from with
    `split_seed`. Without selecting images, held-out captions selected the seed.
    """

    dataset: str = "none"
    images: int = 0
    split_seed: int = 0
    selecting: tuple[str, ...] = ()

    def among(self, files: Sequence[Path]) -> np.ndarray:
        """Which files have the content of a selecting image: `(images,)`, bool."""
        if not self.selecting:
            return np.zeros(len(files), dtype=bool)
        selecting = set(self.selecting)
        return np.array([file_digest(file) in selecting for file in files], dtype=bool)

    def describe(self, left_out: int) -> str:
        """What the artifact was selected on; `left_out`: how many images are left out for it."""
        if not self.selecting:
            return "text: held-out captions"
        return (
            f"half of the images of {self.dataset} ({len(self.selecting):,} of {self.images:,}, "
            f"drawn with seed {self.split_seed}), by fused mAP; "
            + (
                f"the {left_out:,} that are among the images here are left out, and only the "
                "others are reported"
                if left_out
                else "none of them is among the images here"
            )
        )


@dataclass(frozen=True)
class SelectingHalf:
    """The half of the labelled images that selects, small enough to be sent to tuning workers.

    `features`: the folder of all images' features. `rows`: the images that select. `labels`,
    `ignored`: `(rows, classes)`, bool.
    """

    features: Path
    rows: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray | None

    @classmethod
    def of(cls, images: LabelledImages, features: Path, split_seed: int) -> SelectingHalf:
        """The half that `split_seed` draws.

        Raises:
            NoCategoryShown: when it shows no category.
        """
        rows, _ = split_halves(len(images.files), split_seed)
        half = images_at(images, rows)
        if not half.labels.any():
            raise NoCategoryShown(
                f"none of the {len(rows)} images that split_seed {split_seed} draws shows a "
                "category; more images, another split_seed or select_on: text would do"
            )
        return cls(features, rows, half.labels, half.ignored)

    def load(self) -> StoredFeatures:
        """The features of the images that select."""
        return StoredFeatures(self.features, torch.from_numpy(self.rows))

    def fused_map(
        self, items: FeatureSource, classes: ClassFeatures, geometry: Geometry, fusion: str
    ) -> float:
        """mAP (0-100) of the fused scores; `items`: from `load`."""
        fused = method_scores(items, classes, geometry, fusion)["fused"]
        return 100 * mean_average_precision(fused, self.labels, self.ignored)


def select_on_half(
    half: SelectingHalf,
    images: LabelledImages,
    tuned: dict[int, ClassFeatures],
    geometry: Geometry,
    fusion: str,
    dataset: str,
    split_seed: int,
) -> tuple[int, Selection]:
    """Choose the seed with the highest fused mAP on the selecting half of the images.

    `half`: drawn with `split_seed`. `tuned`: class features by seed; the first of equal seeds wins.
    Report only figures of the images that did not select.
    """
    items = half.load()
    maps = {
        seed: half.fused_map(items, classes, geometry, fusion) for seed, classes in tuned.items()
    }
    return max(maps, key=maps.__getitem__), Selection(
        dataset=dataset,
        images=len(images.files),
        split_seed=split_seed,
        selecting=tuple(sorted({file_digest(images.files[row]) for row in half.rows})),
    )


def images_at(images: LabelledImages, rows: np.ndarray) -> LabelledImages:
    """The images of these rows, in their order."""
    return replace(
        images,
        files=tuple(images.files[i] for i in rows),
        labels=images.labels[rows],
        ignored=None if images.ignored is None else images.ignored[rows],
    )


def reported_rows(images: LabelledImages, selection: Selection) -> np.ndarray:
    """The indices of the images that did not select.

    Raises:
        NoCategoryShown: if images selected, and none of these shows a category.
    """
    rows = np.flatnonzero(~selection.among(images.files))
    if selection.selecting and not images.labels[rows].any():
        raise NoCategoryShown(
            "no image of the reported half shows a category; use more images, another "
            "evaluation.split_seed or select_on: text"
        )
    return rows
