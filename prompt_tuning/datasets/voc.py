"""Pascal VOC in the layout of its devkit (Everingham et al., IJCV 88, 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.labelled_images import LabelledImages, labels_over

Difficult = Literal["ignore", "negative", "positive"]

# Class names of the devkit, in the order of the built-in list.
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)

# Usual names by devkit name.
OTHER_NAMES = {
    name: category.names for name, category in zip(CLASSES, built_in("voc").categories, strict=True)
}

VALUES = {"1", "-1", "0"}  # positive, negative, only objects marked as difficult


def where_to_get(year: str) -> str:
    """Where to get the data set, as a sentence."""
    return f"VOC {year} is at http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/"


def read_voc(
    root: Path,
    year: str,
    split: str,
    classes: Sequence[str] = CLASSES,
    difficult: Difficult = "ignore",
) -> LabelledImages:
    """Read a split of VOC (`ImageSets/Main`) over VOC's own classes, labels `(images, classes)`.

    `root`: the folder with `VOCdevkit`, `VOCdevkit` itself, or the year's folder in it.
    `difficult`: how a class counts if an image shows only objects of it marked as difficult.

    Raises:
        ValueError: with a file that is missing (and where to get the data set) or does not match
            the image list of the split.
    """
    base = _year_folder(root, year)
    lists = base / "ImageSets" / "Main"
    ids = list(dict.fromkeys(_lines(lists / f"{split}.txt", year)))
    labels = np.zeros((len(ids), len(classes)), dtype=bool)
    unsure = np.zeros_like(labels)
    for c, name in enumerate(classes):
        file = lists / f"{name}_{split}.txt"
        parts = [line.rpartition(" ") for line in _lines(file, year)]
        values = {image.strip(): value for image, _, value in parts}
        if set(values) != set(ids) or not set(values.values()) <= VALUES:
            raise ValueError(f"{file}: must have 1, -1 or 0 for each image of {split}.txt")
        labels[:, c] = [values[image] == "1" for image in ids]
        unsure[:, c] = [values[image] == "0" for image in ids]
    files = tuple(base / "JPEGImages" / f"{image}.jpg" for image in ids)
    if difficult == "positive":
        labels |= unsure
    return LabelledImages(files, labels, unsure if difficult == "ignore" else None)


def read_voc_over(
    categories: CategoryList, root: Path, year: str, split: str, difficult: Difficult
) -> LabelledImages:
    """`read_voc` over a run's categories, labels `(images, categories)`."""
    photos = read_voc(root, year, split, CLASSES, difficult)
    names = [(official, *OTHER_NAMES[official]) for official in CLASSES]
    return labels_over(categories, photos.files, names, photos.labels, photos.ignored)


def _year_folder(root: Path, year: str) -> Path:
    for base in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (base / "ImageSets" / "Main").is_dir():
            return base
    missing = root / "VOCdevkit" / f"VOC{year}" / "ImageSets" / "Main"
    own = "; annotations of your own are dataset: voc_xml" if any(root.rglob("*.xml")) else ""
    raise ValueError(f"{missing} is missing; {where_to_get(year)}{own}")


def _lines(file: Path, year: str) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{file} is missing; {where_to_get(year)}")
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
