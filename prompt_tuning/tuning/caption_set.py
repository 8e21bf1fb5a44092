"""Captions with their features and labels, as tuning sees them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.captions import Caption, is_held_out, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.features import Features, FeatureSource, Rows, StoredFeatures
from prompt_tuning.knowledge.caption_coverage import check_split
from prompt_tuning.tuning.caption_labels import CaptionLabels


@dataclass(frozen=True)
class CaptionSet:
    """A subset of all captions: the `rows` of the features and labels that belong to it.

    `features`: of all captions, in memory or on disk. `labels`: `(all captions, classes)`, bool, or
    what stands for them. `rows`: `(captions of the set,)`.
    """

    features: FeatureSource
    labels: Rows
    rows: Tensor

    @classmethod
    def of_all(cls, features: FeatureSource, labels: Rows) -> CaptionSet:
        """The set of all captions."""
        return cls(features, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor) -> tuple[Features, Tensor]:
        """Features and labels of the captions at these positions of the set, in memory."""
        rows = self.rows[positions]
        return self.features.take(rows), self.labels[rows]

    def split(self, held_out: Sequence[bool] | array[int]) -> tuple[CaptionSet, CaptionSet]:
        """The training captions and the held-out captions.

        Raises:
            ValueError: if one of the two sets is empty.
        """
        chosen = torch.from_numpy(np.array(held_out, dtype=bool))
        train, validation = (
            CaptionSet(self.features, self.labels, self.rows[subset])
            for subset in (~chosen, chosen)
        )
        check_split(len(train), len(validation))
        return train, validation


def caption_labels(captions: Sequence[Caption], classes: int) -> Tensor:
    """Labels of captions as `(captions, classes)`, bool."""
    return CaptionLabels.of(captions, classes)[torch.arange(len(captions))]


def load_caption_sets(
    captions: Path, features: Path, categories: CategoryList, held_out: float
) -> tuple[CaptionSet, CaptionSet]:
    """The training and the held-out captions, read from the files of earlier stages.

    Features stay on disk. Of each caption this keeps its labels and whether it is held out.

    Raises:
        ValueError: as `CaptionSet.split` does, and if there are not as many features as captions.
    """
    chosen = array("b")

    def read() -> Iterator[Caption]:
        for caption in read_captions(captions, categories):
            chosen.append(is_held_out(caption, held_out))
            yield caption

    labels, stored = CaptionLabels.of(read(), len(categories)), StoredFeatures(features)
    if len(stored) != len(labels):
        raise ValueError(f"{features}: {len(stored)} features of {len(labels)} captions")
    return CaptionSet.of_all(stored, labels).split(chosen)
