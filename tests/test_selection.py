"""Choosing on one half of the labelled images and reporting the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.selection import (
    SelectingHalf,
    Selection,
    select_on_half,
    split_halves,
)
from prompt_tuning.features import Features, save_features, shard_file

GEOMETRY = Geometry(scale=4.0, aggregation="softmax", local_temperature=50.0, global_weight=0.5)
IMAGES = 40


@pytest.mark.parametrize("count", [2, 7, 400])
def test_halves_are_apart_and_leave_nothing_out(count: int) -> None:
    selecting, reported = split_halves(count, 3)
    assert len(selecting) == count // 2
    assert sorted([*selecting, *reported]) == list(range(count))
    again = split_halves(count, 3)
    assert np.array_equal(selecting, again[0])
    assert np.array_equal(reported, again[1])


def test_the_seed_decides_the_halves() -> None:
    assert not np.array_equal(split_halves(400, 0)[0], split_halves(400, 1)[0])


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    """Image `i` shows class `i % 2`."""
    files = tuple(tmp_path / f"{i}.jpg" for i in range(IMAGES))
    for i, file in enumerate(files):
        file.write_bytes(b"image %d" % i)
    return LabelledImages(files, F.one_hot(torch.arange(IMAGES) % 2).bool().numpy())


def right_on(rows: np.ndarray) -> Features:
    """Images that look like their class in these rows, and like the other class elsewhere."""
    shown = torch.arange(IMAGES) % 2
    looks = torch.where(torch.isin(torch.arange(IMAGES), torch.from_numpy(rows)), shown, 1 - shown)
    features = torch.eye(2)[looks]
    return Features(features, features, torch.ones(IMAGES, dtype=torch.long))


def choose(items: Features, images: LabelledImages) -> tuple[int, Selection]:
    """Between prompts that go with what images look like (4) and those with classes swapped (9)."""
    tuned = {
        4: ClassFeatures(torch.eye(2), torch.eye(2)),
        9: ClassFeatures(torch.eye(2).flip(0), torch.eye(2).flip(0)),
    }
    folder = images.files[0].with_name("features")
    folder.mkdir(exist_ok=True)
    save_features(shard_file(folder, 0), items)
    half = SelectingHalf.of(images, folder, 5)
    return select_on_half(half, images, tuned, GEOMETRY, "mean", "folder", 5)


def test_only_the_selecting_half_has_a_say(images: LabelledImages) -> None:
    selecting, reported = split_halves(IMAGES, 5)
    assert choose(right_on(selecting), images)[0] == 4
    assert choose(right_on(reported), images)[0] == 9
    # What is known of the reported half does not matter.
    labels = images.labels.copy()
    labels[reported] = ~labels[reported]
    relabelled = LabelledImages(images.files, labels)
    assert choose(right_on(selecting), relabelled) == choose(right_on(selecting), images)


def test_what_is_ignored_has_no_say(images: LabelledImages) -> None:
    selecting, _ = split_halves(IMAGES, 5)
    right, wrong = selecting[:6], selecting[6:]
    ignored = np.zeros_like(images.labels)
    ignored[wrong] = True
    labels = images.labels & ~ignored
    assert choose(right_on(right), images)[0] == 9
    assert choose(right_on(right), LabelledImages(images.files, labels, ignored))[0] == 4


def test_images_that_selected_are_known_by_their_content(
    images: LabelledImages, tmp_path: Path
) -> None:
    selecting, reported = split_halves(IMAGES, 5)
    _, selection = choose(right_on(selecting), images)
    assert np.flatnonzero(selection.among(images.files)).tolist() == selecting.tolist()
    copies = [tmp_path / "renamed.png", tmp_path / "new.jpg", tmp_path / "other.jpg"]
    shutil.copy(images.files[selecting[0]], copies[0])
    copies[1].write_bytes(b"another image")
    shutil.copy(images.files[reported[0]], copies[2])
    assert selection.among(copies).tolist() == [True, False, False]
    assert not Selection().among(images.files).any()


def test_the_selection_is_described(images: LabelledImages) -> None:
    _, selection = choose(right_on(np.arange(IMAGES)), images)
    text = selection.describe(20)
    assert "half of the images of folder (20 of 40, drawn with seed 5)" in text
    assert "the 20 that are among the images here are left out" in text
    assert "none of them is among the images here" in selection.describe(0)
    assert Selection().describe(0) == "text: held-out captions"


def test_a_half_that_shows_nothing_cannot_select(images: LabelledImages) -> None:
    selecting, _ = split_halves(IMAGES, 5)
    labels = images.labels.copy()
    labels[selecting] = False
    with pytest.raises(ValueError, match="none of the 20 images that split_seed 5 draws shows"):
        choose(right_on(selecting), LabelledImages(images.files, labels))
