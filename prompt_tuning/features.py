"""Features of images or captions: one global vector each and a ragged set of local ones.

On disk they are shards, files of neighbouring items, which are read memory-mapped and by rows: a
process that works on a batch holds that batch, however many items there are.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

# The name of folders of shards.
FEATURES = "features"
# Of one folder; an evaluation opens several, and the kernel allows a process 65,530 mappings.
_SHARDS_OPEN = 8192
# What file systems without hard links answer (ENOSYS: some in user space).
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class Rows(Protocol):
    """A matrix or what stands for one: rows by their indices, which may have any shape."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class FeatureSource(Protocol):
    """`Features` in memory or `StoredFeatures` on disk. `pooled`: `(items, dim)`."""

    @property
    def pooled(self) -> Rows: ...

    def take(self, rows: Tensor) -> Features:
        """The items of these rows, in memory and in their order, with their regions."""


class Features(NamedTuple):
    """Features of images or captions, each vector of unit length (`vlm.patches: refined` aside).

    `pooled`: `(batch, dim)`. `regions`: `(Σ regions, dim)`, those of all items one after the
    other. `counts`: `(batch,)`, how many regions each item has, on the CPU. `tiles`:
    `(batch, tiles, dim)`, the pooled features of an image's tiles, if it was cut into any.
    """

    pooled: Tensor
    regions: Tensor
    counts: Tensor
    tiles: Tensor | None = None

    def take(self, rows: Tensor) -> Features:
        """The items of these rows, in their order, with their regions."""
        return Features(
            self.pooled[rows],
            self.regions[self.regions_of(rows)],
            self.counts[rows],
            None if self.tiles is None else self.tiles[rows],
        )

    def regions_of(self, rows: Tensor) -> Tensor:
        """The indices of all regions of these items, one item after the other."""
        starts = F.pad(self.counts.cumsum(0), (1, 0))[:-1]
        counts = self.counts[rows]
        new_starts = F.pad(counts.cumsum(0), (1, 0))[:-1]
        shifts = torch.repeat_interleave(starts[rows] - new_starts, counts)
        return shifts + torch.arange(len(shifts))

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


def shard_file(folder: Path, start: int) -> Path:
    """The shard of a folder whose first item is this one."""
    return folder / f"{start:012d}.safetensors"


def link_shard(source: Path, folder: Path, start: int) -> None:
    """Put a finished file of features into a folder of shards, without a copy where possible."""
    target = shard_file(folder, start)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)  # a file system without hard links


class StoredFeatures:
    """Features in a folder of shards, of all items or of those at `rows`, in their order."""

    def __init__(self, folder: Path, rows: Tensor | None = None) -> None:
        """Raises ValueError if the folder has no shards."""
        self.folder = folder
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: no shards of features")
        starts = [int(file.stem) for file in files]
        self._starts = torch.tensor([*starts, starts[-1] + len(load_features(files[-1]).counts)])
        self._shard: Callable[[int], Features] = lru_cache(_SHARDS_OPEN)(self._open)
        self._rows = rows

    @property
    def pooled(self) -> Rows:
        """Rows of `(items, dim)`, read when they are asked for."""
        return _StoredPooled(self)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def at(self, rows: Tensor) -> StoredFeatures:
        """The items of these rows, still on disk."""
        return StoredFeatures(self.folder, rows if self._rows is None else self._rows[rows])

    def take(self, rows: Tensor) -> Features:
        """The items of these rows, in memory and in their order, with their regions."""
        found = list(self._in_shards(rows))
        if not found:
            return self._shard(0).take(rows)
        items = _joined([(shard, within) for _, shard, within in found])
        order = torch.cat([places for places, _, _ in found])
        return items if (order[1:] > order[:-1]).all() else items.take(order.argsort())

    def _take_pooled(self, rows: Tensor) -> Tensor:
        flat = rows.flatten()
        sample = self._shard(0).pooled
        pooled = sample.new_empty(len(flat), sample.shape[1])
        for places, shard, within in self._in_shards(flat):
            pooled[places] = shard.pooled[within]
        return pooled.view(*rows.shape, pooled.shape[1])

    def _in_shards(self, rows: Tensor) -> Iterator[tuple[Tensor, Features, Tensor]]:
        """By shard: positions in `rows`, the shard, and the rows within it at these positions."""
        if self._rows is not None:
            rows = self._rows[rows]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < int(self._starts[-1]):
            raise IndexError(f"{self.folder}: rows must be below {int(self._starts[-1])}")
        shards = torch.searchsorted(self._starts, rows, right=True) - 1
        ordered, order = shards.sort(stable=True)
        found, counts = ordered.unique_consecutive(return_counts=True)
        for shard, places in zip(found.tolist(), order.split(counts.tolist()), strict=True):
            yield places, self._shard(shard), rows[places] - self._starts[shard]

    def _open(self, shard: int) -> Features:
        start, end = self._starts[shard : shard + 2].tolist()
        file = shard_file(self.folder, start)
        features = load_features(file)
        if len(features.counts) != end - start:
            raise ValueError(f"{file}: {end - start} items are due (got {len(features.counts)})")
        return features


def _joined(found: list[tuple[Features, Tensor]]) -> Features:
    """These rows of each shard, one shard after the other.

    They are copied straight to where they belong: parts of their own, freed while shards are being
    opened, would leave gaps in memory that grow with the number of shards.
    """
    counts = torch.cat([shard.counts[rows] for shard, rows in found])
    first, items = found[0][0], len(counts)
    pooled = first.pooled.new_empty(items, *first.pooled.shape[1:])
    regions = first.regions.new_empty(int(counts.sum()), *first.regions.shape[1:])
    tiles = None if first.tiles is None else first.tiles.new_empty(items, *first.tiles.shape[1:])
    item = region = 0
    for shard, rows in found:
        of_regions = shard.regions_of(rows)
        ends = item + len(rows), region + len(of_regions)
        torch.index_select(shard.pooled, 0, rows, out=pooled[item : ends[0]])
        torch.index_select(shard.regions, 0, of_regions, out=regions[region : ends[1]])
        if tiles is not None and shard.tiles is not None:
            torch.index_select(shard.tiles, 0, rows, out=tiles[item : ends[0]])
        item, region = ends
    return Features(pooled, regions, counts, tiles)


class _StoredPooled:
    """See `StoredFeatures.pooled`."""

    def __init__(self, features: StoredFeatures) -> None:
        self._features = features

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self._features._take_pooled(rows)
