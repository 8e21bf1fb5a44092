"""Images labelled in COCO's JSON: COCO itself (Lin et al., ECCV 2014), and one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.labelled_images import (
    LabelledImages,
    category_indices,
    labels_over,
)

WHERE_TO_GET = "COCO is at https://cocodataset.org/#download"
OWN_LAYOUT = "a folder with annotations.json in COCO's format, and its pictures"


def read_coco(
    categories: CategoryList, root: Path, year: str, split: str, crowd: bool
) -> LabelledImages:
    """A split of COCO over a run's categories, `(images, categories)`.

    `root` has `annotations/instances_<split><year>.json` and the pictures in `<split><year>/`; a
    split that names its year already is taken as it is. Images without any annotation belong to
    it. `crowd`: a class is positive also where only a crowd region of it is annotated.

    Raises:
        ValueError: naming the file when it is missing, and where COCO is to be had, or when it is
            no such JSON, or listing COCO's classes when none is a category of the list.
    """
    folder = split if year in split else f"{split}{year}"
    file = root / "annotations" / f"instances_{folder}.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; {WHERE_TO_GET}")
    names, images, labels = _read_instances(file, crowd)
    synonyms = {category.name: category.names for category in built_in("coco").categories}
    classes = [(name, *synonyms.get(name, ())) for name in names]
    files = tuple(root / folder / image for image in images)
    return LabelledImages(files, *labels_over(categories, classes, labels))


def read_coco_json(categories: CategoryList, root: Path, crowd: bool) -> LabelledImages:
    """One's own `annotations.json` in COCO's format, `file_name` relative to its folder.

    A category in it is a category of the list or a synonym of one. `crowd`: as in `read_coco`.

    Raises:
        ValueError: naming the file when it is missing or no such JSON, or listing the annotated
            categories that are none of the list.
    """
    file = root / "annotations.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; it must be {OWN_LAYOUT}")
    names, images, labels = _read_instances(file, crowd)
    index = category_indices(categories)
    foreign = [name for i, name in enumerate(names) if name not in index and labels[:, i].any()]
    if foreign:
        raise ValueError(f"{file}: no category: {', '.join(foreign)}")
    classes = [(name,) for name in names]
    files = tuple(root / image for image in images)
    return LabelledImages(files, *labels_over(categories, classes, labels))


def _read_instances(file: Path, crowd: bool) -> tuple[list[str], list[str], np.ndarray]:
    """Names of the classes, names of the image files, and labels `(images, classes)`."""
    try:
        described: dict[str, Any] = json.loads(file.read_bytes())
        column = {category["id"]: i for i, category in enumerate(described["categories"])}
        row = {image["id"]: i for i, image in enumerate(described["images"])}
        labels = np.zeros((len(row), len(column)), dtype=bool)
        for annotation in described["annotations"]:
            if crowd or not annotation.get("iscrowd", 0):
                labels[row[annotation["image_id"]], column[annotation["category_id"]]] = True
        names = [str(category["name"]) for category in described["categories"]]
        images = [str(image["file_name"]) for image in described["images"]]
    except KeyError as error:
        raise ValueError(f"{file}: not in COCO's format: {error} is not there") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not in COCO's format ({error})") from None
    return names, images, labels
