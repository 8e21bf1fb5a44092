"""Images with labels in COCO's JSON format: COCO (Lin et al., ECCV 2014) and your own."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.labelled_images import LabelledImages, image_file, labels_over

WHERE_TO_GET = "COCO is at https://cocodataset.org/#download"
OWN_LAYOUT = "a folder with annotations.json in COCO's format, and its images"

Item = TypeVar("Item", bound=Hashable)


def read_coco(
    categories: CategoryList, root: Path, year: str, split: str, crowd: bool
) -> LabelledImages:
    """Read a split of COCO over a run's categories, labels `(images, categories)`.

    `root` has `annotations/instances_<split><year>.json` and the images in `<split><year>/`;
    `split` may contain its year. Images without annotations are included. `crowd`: whether a class
    is positive if only a crowd region of it is annotated.

    Raises:
        ValueError: with the file, if it is missing (with where to get COCO) or not in this format,
            or with COCO's classes, if none of them is in the category list.
    """
    folder = split if year in split else f"{split}{year}"
    file = root / "annotations" / f"instances_{folder}.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; {WHERE_TO_GET}")
    synonyms = {category.name: category.names for category in built_in("coco").categories}
    files, names, labels = _read_instances(file, root / folder, crowd)
    classes = [(name, *synonyms.get(name, ())) for name in names]
    return labels_over(categories, files, classes, labels)


def read_coco_json(categories: CategoryList, root: Path, crowd: bool) -> LabelledImages:
    """Read `annotations.json` in COCO's format, with `file_name` relative to its folder.

    Its categories that are not in the category list become `other_classes`. `crowd`: as in
    `read_coco`.

    Raises:
        ValueError: with the file, if it is missing, not in this format or without annotations, or
            with its categories, if none of them is in the category list.
    """
    file = root / "annotations.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; it must be {OWN_LAYOUT}")
    files, names, labels = _read_instances(file, root, crowd)
    return labels_over(categories, files, [(name,) for name in names], labels)


def _read_instances(
    file: Path, folder: Path, crowd: bool
) -> tuple[list[Path], list[str], np.ndarray]:
    """Image files below `folder`, class names, and labels `(images, classes)`.

    Images and categories that are listed twice are merged.
    """
    try:
        described: dict[str, Any] = json.loads(file.read_bytes())
        for i, image in enumerate(described["images"]):
            if not isinstance(image["file_name"], str):
                raise ValueError(f"image {i}: file_name must be text (got {image['file_name']!r})")
        images = [(i["id"], image_file(folder, i["file_name"])) for i in described["images"]]
        classes = [(c["id"], str(c["name"])) for c in described["categories"]]
        (row, files), (column, names) = _merged(images, "image"), _merged(classes, "category")
        labels = np.zeros((len(files), len(names)), dtype=bool)
        for i, annotation in enumerate(described["annotations"]):
            if annotation.get("iscrowd", 0) and not crowd:
                continue
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if image_id not in row:
                raise ValueError(f"annotation {i}: image_id {image_id!r} is not among images")
            if category_id not in column:
                raise ValueError(
                    f"annotation {i}: category_id {category_id!r} is not among categories"
                )
            labels[row[image_id], column[category_id]] = True
    except KeyError as error:
        raise ValueError(f"{file}: not in COCO's format: {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not in COCO's format ({error})") from None
    if not described["annotations"]:
        raise ValueError(
            f"{file}: annotations must not be empty: no image has a label. CVAT does not export "
            "image tags in this format: export boxes, or use labels.csv with dataset: folder"
        )
    return files, names, labels


def _merged(
    pairs: list[tuple[Hashable, Item]], what: str
) -> tuple[dict[Hashable, int], list[Item]]:
    """The index of each id's item, and the items without duplicates.

    Raises:
        ValueError: for an id with two different items.
    """
    index: dict[Item, int] = {}
    index_by_id: dict[Hashable, int] = {}
    for key, item in pairs:
        i = index.setdefault(item, len(index))
        if index_by_id.setdefault(key, i) != i:
            first = list(index)[index_by_id[key]]
            raise ValueError(f"{what} id {key!r} stands for {str(first)!r} and {str(item)!r}")
    return index_by_id, list(index)
