"""Ragged features: taking items, joining parts, and the file they are kept in."""

from __future__ import annotations

from pathlib import Path

import torch

from prompt_tuning.features import Features, concatenate, load_features, save_features


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
