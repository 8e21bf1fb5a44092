"""Captions with their features and labels, as tuning sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prompt_tuning.captions import Caption, is_held_out, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.features import Features, load_features
from prompt_tuning.knowledge.caption_coverage import check_split


@dataclass(frozen=True)
class CaptionSet:
    """A subset of all captions: the `rows` of the features and labels that belong to it.

    `features`: of all captions; they may stay on disk (memory-mapped). `labels`: `(all captions,
    classes)`, bool. `rows`: `(captions of the set,)`.
    """

    features: Features
    labels: Tensor
    rows: Tensor

    @classmethod
    def of_all(cls, features: Features, labels: Tensor) -> CaptionSet:
        """The set of all captions."""
        return cls(features, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor) -> CaptionSet:
        """The captions at these positions of the set, in memory, with their regions."""
        rows = self.rows[positions]
        return CaptionSet.of_all(self.features.take(rows), self.labels[rows])

    def load(self) -> CaptionSet:
        """All captions of the set, in memory."""
        return self.take(torch.arange(len(self)))

    def split(self, held_out: Sequence[bool]) -> tuple[CaptionSet, CaptionSet]:
        """The training captions and the held-out captions.

        Raises:
            ValueError: if one of the two sets is empty.
        """
        chosen = torch.tensor(held_out, dtype=torch.bool)
        train, validation = (
            CaptionSet(self.features, self.labels, self.rows[subset])
            for subset in (~chosen, chosen)
        )
        check_split(len(train), len(validation))
        return train, validation


def caption_labels(captions: Sequence[Caption], classes: int) -> Tensor:
    """Labels of captions as `(captions, classes)`, bool."""
    labels = torch.zeros(len(captions), classes, dtype=torch.bool)
    for row, caption in enumerate(captions):
        labels[row, list(caption.labels)] = True
    return labels


def load_caption_sets(
    captions: Path, features: Path, categories: CategoryList, held_out: float
) -> tuple[CaptionSet, CaptionSet]:
    """The training and the held-out captions, read from the files of earlier stages.

    Raises:
        ValueError: as `CaptionSet.split` does.
    """
    listed = read_captions(captions, categories)
    whole = CaptionSet.of_all(load_features(features), caption_labels(listed, len(categories)))
    return whole.split([is_held_out(caption, held_out) for caption in listed])
