"""Labelled images to evaluate on: where the files are and which categories each shows."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels `(images, classes)`, bool."""

    files: tuple[Path, ...]
    labels: np.ndarray


def read_scenes(folder: Path, categories: CategoryList) -> LabelledImages:
    """Scenes that `compose_scenes` wrote; labels that are no category of the list are ignored."""
    scenes = json.loads((folder / "labels.json").read_text("utf-8"))["images"]
    labels = [[name in scene["labels"] for name in categories.names] for scene in scenes]
    return LabelledImages(tuple(folder / scene["file"] for scene in scenes), np.array(labels))


def read_folder(folder: Path, categories: CategoryList) -> LabelledImages:
    """One's own photos: `labels.csv` in their folder, rows `path,label;label`, no header.

    Raises:
        ValueError: naming the row, for a missing file or a label that is no category of the list,
            or naming the table when it is missing, empty, not UTF-8 or no CSV.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise ValueError(f"{table} is missing: rows of path,label;label for each photo")
    files: list[Path] = []
    labels: list[list[bool]] = []
    try:
        rows = list(csv.reader(table.read_text("utf-8-sig").splitlines()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: no CSV in UTF-8 ({error})") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"{table}, row {number}: must be path,label;label")
        if not (folder / row[0]).is_file():
            raise ValueError(f"{table}, row {number}: {row[0]} is not there")
        shown = {label.strip() for label in row[1].split(";") if label.strip()}
        foreign = sorted(shown - set(categories.names))
        if foreign:
            raise ValueError(f"{table}, row {number}: no category: {', '.join(foreign)}")
        files.append(folder / row[0])
        labels.append([name in shown for name in categories.names])
    if not files:
        raise ValueError(f"{table} lists no photo")
    if not any(map(any, labels)):
        raise ValueError(f"{table}: no photo shows any category, so there is nothing to measure")
    return LabelledImages(tuple(files), np.array(labels))


def read_voc(root: Path, year: str, split: str, classes: tuple[str, ...]) -> LabelledImages:
    """A VOC devkit's split (`ImageSets/Main`): "1" is positive, "-1" and "0" (difficult) are not.

    `classes`: VOC's own class names, in the order of the classes axis.
    """
    base = root / "VOCdevkit" / f"VOC{year}"
    ids = (base / "ImageSets" / "Main" / f"{split}.txt").read_text("utf-8").split()
    row = {image: i for i, image in enumerate(ids)}
    labels = np.zeros((len(ids), len(classes)), dtype=bool)
    for c, name in enumerate(classes):
        lines = (base / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text("utf-8")
        for line in lines.splitlines():
            image, value = line.split()
            labels[row[image], c] = value == "1"
    return LabelledImages(tuple(base / "JPEGImages" / f"{i}.jpg" for i in ids), labels)
