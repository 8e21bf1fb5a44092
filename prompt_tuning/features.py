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
    """Features of images or captions, each vector of unit length (`vlm.patches: refined` aside).

    `pooled`: `(batch, dim)`. `regions`: `(Σ regions, dim)`, those of all items one after the
    other. `counts`: `(batch,)`, how many regions each item has; it stays on the CPU. `tiles`:
    `(batch, tiles, dim)`, the pooled features of an image's tiles, if it was cut into any.
    """

    pooled: Tensor
    regions: Tensor
    counts: Tensor
    tiles: Tensor | None = None

    def take(self, rows: Tensor) -> Features:
        """The items of these rows, in their order, with their regions."""
        starts = F.pad(self.counts.cumsum(0), (1, 0))[:-1]
        counts = self.counts[rows]
        new_starts = F.pad(counts.cumsum(0), (1, 0))[:-1]
        shifts = torch.repeat_interleave(starts[rows] - new_starts, counts)
        return Features(
            self.pooled[rows],
            self.regions[shifts + torch.arange(len(shifts))],
            counts,
            None if self.tiles is None else self.tiles[rows],
        )

    def merge(self, group: int) -> Features:
        """Merge each `group` neighbouring captions into one item: their mean, all regions."""
        pooled = self.pooled.float().unflatten(0, (-1, group)).mean(1)
        counts = self.counts.unflatten(0, (-1, group)).sum(1)
        return Features(F.normalize(pooled, dim=-1), self.regions, counts)

    def to(self, device: str | torch.device) -> Features:
        """The same on another device; counts stay on the CPU, which lays out the rest by them."""
        tiles = None if self.tiles is None else self.tiles.to(device)
        return Features(self.pooled.to(device), self.regions.to(device), self.counts, tiles)

    def float(self) -> Features:
        """The same in single precision, for computations."""
        tiles = None if self.tiles is None else self.tiles.float()
        return Features(self.pooled.float(), self.regions.float(), self.counts, tiles)


def concatenate(parts: Iterable[Features]) -> Features:
    """The items of all parts, one part after the other."""
    pooled, regions, counts, tiles = zip(*parts, strict=True)
    return Features(
        torch.cat(pooled),
        torch.cat(regions),
        torch.cat(counts),
        None if tiles[0] is None else torch.cat(tiles),
    )


def save_features(path: Path, features: Features) -> None:
    """Write features in half precision, without padding."""
    tensors = {
        "pooled": features.pooled.half().contiguous(),
        "regions": features.regions.half().contiguous(),
        "counts": features.counts,
    }
    if features.tiles is not None:
        tensors["tiles"] = features.tiles.half().contiguous()
    save_file(tensors, path)


def load_features(path: Path) -> Features:
    """Read what `save_features` wrote, memory-mapped."""
    return Features(**load_file(path))
