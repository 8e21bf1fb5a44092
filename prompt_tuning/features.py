"""Features of images or captions: one global vector each and a ragged set of local ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

# The name of files with features.
FEATURES = "features.safetensors"


class Features(NamedTuple):
    """Features of images or captions, each vector of unit length.

    `pooled`: `(batch, dim)`. `regions`: `(Σ regions, dim)`, those of all items one after the
    other. `counts`: `(batch,)`, how many regions each item has.
    """

    pooled: Tensor
    regions: Tensor
    counts: Tensor

    def take(self, rows: Tensor) -> Features:
        """The items of these rows, in their order, with their regions."""
        starts = F.pad(self.counts.cumsum(0), (1, 0))[:-1]
        counts = self.counts[rows]
        new_starts = F.pad(counts.cumsum(0), (1, 0))[:-1]
        shifts = torch.repeat_interleave(starts[rows] - new_starts, counts)
        return Features(self.pooled[rows], self.regions[shifts + torch.arange(len(shifts))], counts)

    def merge(self, group: int) -> Features:
        """Merge each `group` neighbours into one item: their mean, of unit length, all regions."""
        pooled = self.pooled.float().unflatten(0, (-1, group)).mean(1)
        counts = self.counts.unflatten(0, (-1, group)).sum(1)
        return Features(F.normalize(pooled, dim=-1), self.regions, counts)

    def to(self, device: str | torch.device) -> Features:
        """The same on another device."""
        return Features(*(part.to(device) for part in self))

    def float(self) -> Features:
        """The same in single precision, for computations."""
        return Features(self.pooled.float(), self.regions.float(), self.counts)


def concatenate(parts: Iterable[Features]) -> Features:
    """The items of all parts, one part after the other."""
    pooled, regions, counts = zip(*parts, strict=True)
    return Features(torch.cat(pooled), torch.cat(regions), torch.cat(counts))


def save_features(path: Path, features: Features) -> None:
    """Write features in half precision, without padding."""
    save_file(
        {
            "pooled": features.pooled.half().contiguous(),
            "regions": features.regions.half().contiguous(),
            "counts": features.counts,
        },
        path,
    )


def load_features(path: Path) -> Features:
    """Read what `save_features` wrote, memory-mapped."""
    return Features(**load_file(path))
