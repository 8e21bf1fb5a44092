"""Tags for images, from an artifact: the part that people use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.features import Features
from prompt_tuning.images import open_image
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.new_labels import meant_labels
from prompt_tuning.tiles import over_the_image, view_boxes
from prompt_tuning.tuning.scoring import raw_image_scores, region_shares

_TOKENIZER = threading.Lock()  # tokenizers refuse two threads at once

ImageSource = Image.Image | Path | str


@dataclass(frozen=True)
class Tag:
    """A label with its calibrated score in [0, 1]."""

    name: str
    score: float


class Tagger:
    """Scores and tags images with the labels of an artifact; safe to use from several threads.

    Images are PIL images or files, which are turned upright. Scores are independent of each
    other: an image may show several labels, or none (see calibration.py).

    `vlm`: the image–text model. `names`: the labels, in the order of every `(…, classes)` axis.
    `thresholds`: `(classes,)`, the
    score from which on a label is a tag. `batch`: how many images are encoded at once.
    """

    def __init__(self, artifact: Artifact, vlm: VLM, labels: Sequence[str] | None = None) -> None:
        """`labels`: as in `with_labels`, else the artifact's categories.

        Raises:
            ValueError: as `with_labels` does, and if the artifact was tuned for another VLM.
        """
        artifact.check_vlm(vlm)
        self._artifact, self.vlm = artifact, vlm
        self.names = artifact.categories.names
        if labels is not None:
            self.names = meant_labels(labels, artifact.categories)
        new = [label for label in self.names if label not in artifact.categories.names]
        if new:
            with _TOKENIZER:
                artifact = artifact.adding(new, vlm)
        rows = [artifact.categories.index(label) for label in self.names]
        self._pooled = artifact.classes.pooled[rows].to(vlm.device)
        self._local = artifact.classes.local[rows].to(vlm.device)
        self._calibration = artifact.calibration.of(rows)
        self.thresholds = self._calibration.thresholds
        self.device = vlm.device
        self.batch = vlm.images_per_batch

    @classmethod
    def load(
        cls, folder: Path | str, device: str | None = None, cache: Path | None = None
    ) -> Tagger:
        """Read an artifact, or `starter`, and load the image–text model that it was tuned for.

        `device`: PyTorch's name; by default a GPU if there is one. `cache`: a folder for results
        that the model computes from its weights.

        Raises:
            ValueError: in one line, for a folder without an undamaged artifact of this version, and
                for a model that cannot be loaded or has changed.
        """
        artifact = Artifact.load(folder)
        fetch_weights(artifact.vlm_settings)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(artifact, load_vlm(artifact.vlm_settings, device, cache))

    def scores(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Calibrated scores in [0, 1], `(images, classes)`.

        Raises:
            ValueError: naming the file, when one cannot be read.
        """
        return self.calibrated(self.raw_scores(images))

    def calibrated(self, raw: np.ndarray) -> np.ndarray:
        """As `scores`, of raw scores `(…, classes)`."""
        return self._calibration.scores(raw)

    def raw_scores(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Scores before calibration: the branches' weighted mean, `(images, classes)`."""
        scored = [np.zeros((0, len(self.names)), dtype=np.float32)]
        for start in range(0, len(images), self.batch):
            batch = images[start : start + self.batch]
            scored.append(self.score_pixels(torch.stack([self.pixels(image) for image in batch])))
        return np.concatenate(scored)

    def pixels(self, image: ImageSource) -> Tensor:
        """An image as input of the model (see `VLM.preprocess`).

        Raises:
            ValueError: naming the file, when it cannot be read.
        """
        opened = image if isinstance(image, Image.Image) else open_image(Path(image))
        return self.vlm.preprocess(opened)

    @torch.no_grad()
    def score_pixels(self, pixels: Tensor) -> np.ndarray:
        """As `raw_scores`, from a stack of `pixels`."""
        return self.score_features(self.vlm.encode_image(pixels.to(self.vlm.device)).float())

    @torch.no_grad()
    def score_features(self, features: Features) -> np.ndarray:
        """As `raw_scores`, from the features of images."""
        geometry, features = self._artifact.geometry, features.to(self.vlm.device)
        return raw_image_scores(features, self._pooled, self._local, geometry).cpu().numpy()

    def tag(
        self, images: Sequence[ImageSource], threshold: float | None = None, top: int | None = None
    ) -> list[list[Tag]]:
        """The tags of each image, best first: labels whose score reaches the threshold.

        `threshold`: for all labels; by default each has its own. `top`: at most this many tags.

        Raises:
            ValueError: naming the file, when one cannot be read.
        """
        return self.tags(self.raw_scores(images), threshold, top)

    def tags(
        self, raw: np.ndarray, threshold: float | None = None, top: int | None = None
    ) -> list[list[Tag]]:
        """As `tag`, of raw scores `(images, classes)`."""
        scores = self.calibrated(raw)
        reached = scores >= (self.thresholds if threshold is None else threshold)
        return [
            [
                Tag(self.names[c], float(row[c]))
                for c in np.argsort(-row, kind="stable")
                if is_tag[c]
            ][:top]
            for row, is_tag in zip(scores, reached, strict=True)
        ]

    @torch.no_grad()
    def heat_maps(self, image: ImageSource) -> np.ndarray:
        """Each region's share in each label's local score, `(classes, rows, columns)`.

        A label's shares add up to 1. They cover the whole image, which is not cropped.

        Raises:
            ValueError: naming the file, when it cannot be read.
        """
        pixels = self.pixels(image)[None].to(self.vlm.device)
        regions = self.vlm.encode_image(pixels).regions.float()
        shares = region_shares(regions, self._local, self._artifact.geometry)
        tiles = self.vlm.settings.tiles
        views = len(view_boxes(tiles))
        side = round((len(regions) / views) ** 0.5)  # views are made square
        maps = shares.T.reshape(len(self.names), views, side, side)
        return over_the_image(maps, tiles).cpu().numpy()

    def with_labels(self, labels: Sequence[str]) -> Tagger:
        """A tagger of these labels only, without tuning (see new_labels.py).

        A category of the artifact, in any spelling or by a synonym, keeps its name, its tuned
        prompts and its calibration; new labels get the shared ones. On a branch that was tuned
        without tokens, new labels get the anchor.

        Raises:
            ValueError: in one line, for no labels, a label twice, one that is not a name, or one of
                a category's kinds.
        """
        return Tagger(self._artifact, self.vlm, labels)
