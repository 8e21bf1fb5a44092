"""Ragged features: taking items, joining parts, and the file they are kept in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prompt_tuning.features import (
    Features,
    StoredFeatures,
    concatenate,
    link_shard,
    load_features,
    save_features,
    shard_file,
)


def ragged(*counts: int, first: float = 0.0) -> Features:
    """Each region and both tiles of each item are numbered, to see one in a wrong place."""
    total = sum(counts)
    return Features(
        first + torch.arange(len(counts)).float()[:, None].expand(-1, 3),
        first + torch.arange(total).float()[:, None].expand(-1, 3),
        torch.tensor(counts),
        first + torch.arange(2 * len(counts)).float().view(-1, 2, 1).expand(-1, -1, 3),
    )


def regions_of_items(features: Features) -> list[list[float]]:
    parts = features.regions[:, 0].split(features.counts.tolist())
    return [part.tolist() for part in parts]


def same(one: Features, other: Features) -> bool:
    return all(
        a is b is None or torch.equal(a, b)  # None: without tiles
        for a, b in zip(one, other, strict=True)
    )


def test_take_brings_each_item_its_own_regions() -> None:
    items = ragged(2, 1, 3)
    assert regions_of_items(items) == [[0, 1], [2], [3, 4, 5]]
    taken = items.take(torch.tensor([2, 0, 2]))
    assert taken.pooled[:, 0].tolist() == [2, 0, 2]
    assert taken.counts.tolist() == [3, 2, 3]
    assert regions_of_items(taken) == [[3, 4, 5], [0, 1], [3, 4, 5]]
    assert taken.tiles is not None
    assert taken.tiles[:, :, 0].tolist() == [[4, 5], [0, 1], [4, 5]]


def test_taking_all_in_order_changes_nothing() -> None:
    assert same(ragged(2, 1, 3).take(torch.arange(3)), ragged(2, 1, 3))


def test_taking_nothing_gives_empty_features() -> None:
    taken = ragged(2, 1, 3).take(torch.arange(0))
    assert [part.shape for part in taken if part is not None] == [(0, 3), (0, 3), (0,), (0, 2, 3)]


def test_parts_are_joined_in_order_and_can_be_taken_apart() -> None:
    one, other = ragged(2, 1), ragged(3, first=10.0)
    joined = concatenate([one, other])
    assert regions_of_items(joined) == [[0, 1], [2], [10, 11, 12]]
    assert same(joined.take(torch.tensor([0, 1])), one)
    assert same(joined.take(torch.tensor([2])), other)


def test_files_keep_half_precision_and_counts(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    items = Features(
        torch.randn(3, 5, generator=generator),
        torch.randn(6, 5, generator=generator),
        torch.tensor([2, 1, 3]),
    )
    save_features(tmp_path / "features.safetensors", items)
    read = load_features(tmp_path / "features.safetensors")
    assert same(read, Features(items.pooled.half(), items.regions.half(), items.counts))
    assert read.counts.dtype == torch.int64
    assert same(read.float(), Features(read.pooled.float(), read.regions.float(), read.counts))
    torch.testing.assert_close(read.float().regions, items.regions, atol=2e-3, rtol=1e-3)


def test_features_that_are_views_can_be_saved(tmp_path: Path) -> None:
    taken = ragged(2, 1, 3).take(torch.tensor([1]))
    save_features(tmp_path / "features.safetensors", taken)
    assert same(load_features(tmp_path / "features.safetensors").float(), taken)


def stored(folder: Path, features: Features, *sizes: int) -> StoredFeatures:
    """The features in shards of these sizes."""
    folder.mkdir()
    start = 0
    for size in sizes:
        part = features.take(torch.arange(start, start + size))
        save_features(shard_file(folder, start), part)
        start += size
    return StoredFeatures(folder)


def test_shards_are_read_as_one_file_is(tmp_path: Path) -> None:
    counts = [1 + number % 4 for number in range(23)]
    whole = ragged(*counts)
    save_features(tmp_path / "one.safetensors", whole)
    one = load_features(tmp_path / "one.safetensors")
    shards = stored(tmp_path / "shards", whole, 10, 10, 3)
    assert len(shards) == len(shards.pooled) == 23
    orders = ([*range(23)], [22, 0, 9, 10, 10, 19], [4, 2], [20], [])
    for rows in map(torch.tensor, orders):
        rows = rows.long()
        assert same(shards.take(rows), one.take(rows))
        assert torch.equal(shards.pooled[rows], one.pooled[rows])
    pairs = torch.tensor([[3, 21], [11, 0]])
    assert torch.equal(shards.pooled[pairs], one.pooled[pairs])
    some = shards.at(torch.tensor([22, 5, 12, 1]))
    assert len(some.pooled) == 4
    assert same(some.take(torch.tensor([2, 0])), one.take(torch.tensor([12, 22])))
    assert same(some.at(torch.tensor([1])).take(torch.tensor([0])), one.take(torch.tensor([5])))
    with pytest.raises(IndexError, match="rows must be below 23"):
        shards.take(torch.tensor([0, 23]))


def test_a_shard_that_is_missing_or_cut_is_noticed(tmp_path: Path) -> None:
    shards = stored(tmp_path / "shards", ragged(*[2] * 9), 3, 3, 3)
    shard_file(shards.folder, 3).unlink()
    damaged = StoredFeatures(shards.folder)
    with pytest.raises(ValueError, match=r"0000\.safetensors: 6 items are due \(got 3\)"):
        damaged.take(torch.tensor([1]))
    assert damaged.take(torch.tensor([7])).pooled[0, 0] == 7
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no shards of features"):
        StoredFeatures(tmp_path / "empty")


def test_shards_are_linked_and_where_that_fails_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_features(tmp_path / "part", ragged(2, 1))
    link_shard(tmp_path / "part", tmp_path, 0)
    assert shard_file(tmp_path, 0).stat().st_ino == (tmp_path / "part").stat().st_ino

    def refuse(*_: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    link_shard(tmp_path / "part", tmp_path, 2)
    assert shard_file(tmp_path, 2).read_bytes() == (tmp_path / "part").read_bytes()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        link_shard(tmp_path / "gone", tmp_path, 4)


# Prints by how many bytes the memory that is not a file's grows while all rows are read in batches.
READ_ALL = """
import re, sys
from pathlib import Path
import torch
from prompt_tuning.features import StoredFeatures

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

shards = StoredFeatures(Path(sys.argv[1]))
shards.take(torch.arange(64))
before = peak = anonymous()
for rows in torch.randperm(len(shards)).split(64):
    shards.take(rows).float()
    shards.pooled[rows]
    peak = max(peak, anonymous())
print(peak - before)
"""


def test_reading_by_rows_keeps_nothing_in_memory(tmp_path: Path) -> None:
    """64 MB are read, and a batch takes 1 MB."""
    (tmp_path / "shards").mkdir()
    regions = torch.ones(16 * 1024, 256)
    part = Features(torch.ones(1024, 256), regions, torch.full((1024,), 16))
    for number in range(8):
        save_features(shard_file(tmp_path / "shards", 1024 * number), part)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "shards")]
    read = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(read.stdout) < 16 * 2**20
