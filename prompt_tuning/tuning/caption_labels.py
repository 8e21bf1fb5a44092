"""The labels of captions, as indices: few of many classes, so a matrix would be mostly empty."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.captions import Caption


class CaptionLabels:
    """Stands for a matrix `(captions, classes)`, bool: `labels[rows]` are its rows."""

    def __init__(self, indices: Tensor, counts: Tensor, classes: int) -> None:
        """`indices`: of the labels of all captions, one after the other; `counts`: of each."""
        self._indices, self._classes = indices, classes
        self._starts = F.pad(counts.cumsum(0), (1, 0))

    @classmethod
    def of(cls, captions: Iterable[Caption], classes: int) -> CaptionLabels:
        """The labels of these captions."""
        indices, counts = array("i"), array("i")
        for caption in captions:
            indices.extend(caption.labels)
            counts.append(len(caption.labels))
        return cls(
            torch.from_numpy(np.array(indices, dtype=np.int32)),
            torch.from_numpy(np.array(counts, dtype=np.int64)),
            classes,
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        flat = rows.flatten()
        starts = self._starts[flat]
        counts = self._starts[flat + 1] - starts
        first = starts - F.pad(counts.cumsum(0), (1, 0))[:-1]
        places = torch.repeat_interleave(first, counts)
        shown = self._indices[places + torch.arange(len(places))].long()
        labels = torch.zeros(len(flat), self._classes, dtype=torch.bool)
        labels[torch.repeat_interleave(counts), shown] = True
        return labels.view(*rows.shape, self._classes)
