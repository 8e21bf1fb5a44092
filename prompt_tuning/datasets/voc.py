"""Pascal VOC in the layout of its devkit (Everingham et al., IJCV 88, 2010)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.labelled_images import LabelledImages, labels_over, read_lines

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

_VALUES = {"1", "-1", "0"}  # positive, negative, only objects marked as difficult


def where_to_get(year: str) -> str:
    return f"VOC {year} is at http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/"


def read_voc(
    categories: CategoryList, root: Path, year: str, split: str, difficult: Difficult = "ignore"
) -> LabelledImages:
    """Read a split of VOC (`ImageSets/Main`) over a run's categories, `(images, categories)`.

    `root`: the folder with `VOCdevkit`, `VOCdevkit` itself, or the year's folder in it.
    `difficult`: how a class counts if an image shows only objects of it marked as difficult.

    Raises:
        ValueError: with a file that is missing (and where to get the data set) or does not match
            the image list of the split, or with the classes, if none is in the category list.
    """
    base = _year_folder(root, year)
    lists = base / "ImageSets" / "Main"
    ids = list(dict.fromkeys(read_lines(lists / f"{split}.txt", where_to_get(year))))
    labels = np.zeros((len(ids), len(CLASSES)), dtype=bool)
    unsure = np.zeros_like(labels)
    for c, name in enumerate(CLASSES):
        file = lists / f"{name}_{split}.txt"
        parts = [line.rpartition(" ") for line in read_lines(file, where_to_get(year))]
        values = {image.strip(): value for image, _, value in parts}
        if set(values) != set(ids) or not set(values.values()) <= _VALUES:
            raise ValueError(f"{file}: must have 1, -1 or 0 for each image of {split}.txt")
        labels[:, c] = [values[image] == "1" for image in ids]
        unsure[:, c] = [values[image] == "0" for image in ids]
    files = tuple(base / "JPEGImages" / f"{image}.jpg" for image in ids)
    if difficult == "positive":
        labels |= unsure
    names = [(official, *OTHER_NAMES[official]) for official in CLASSES]
    return labels_over(categories, files, names, labels, unsure if difficult == "ignore" else None)


def _year_folder(root: Path, year: str) -> Path:
    for base in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (base / "ImageSets" / "Main").is_dir():
            return base
    missing = root / "VOCdevkit" / f"VOC{year}" / "ImageSets" / "Main"
    own = "; annotations of your own are dataset: voc_xml" if any(root.rglob("*.xml")) else ""
    raise ValueError(f"{missing} is missing; {where_to_get(year)}{own}")
