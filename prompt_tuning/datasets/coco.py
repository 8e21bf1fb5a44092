"""Images labelled in COCO's JSON: COCO itself (Lin et al., ECCV 2014), and one's own."""

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
    """A split of COCO over a run's categories, `(images, categories)`.

    `root` has `annotations/instances_<split><year>.json` and the images in `<split><year>/`; a
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
    synonyms = {category.name: category.names for category in built_in("coco").categories}
    files, names, labels = _read_instances(file, root / folder, crowd)
    classes = [(name, *synonyms.get(name, ())) for name in names]
    return labels_over(categories, files, classes, labels)


def read_coco_json(categories: CategoryList, root: Path, crowd: bool) -> LabelledImages:
    """One's own `annotations.json` in COCO's format, `file_name` relative to its folder.

    Its categories that are none of the list are `other_classes`. `crowd`: as in `read_coco`.

    Raises:
        ValueError: naming the file when it is missing, no such JSON or without annotations, or
            listing its categories when none is one of the list.
    """
    file = root / "annotations.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; it must be {OWN_LAYOUT}")
    files, names, labels = _read_instances(file, root, crowd)
    return labels_over(categories, files, [(name,) for name in names], labels)


def _read_instances(
    file: Path, folder: Path, crowd: bool
) -> tuple[list[Path], list[str], np.ndarray]:
    """Image files below `folder`, names of the classes, and labels `(images, classes)`.

    An image that is listed twice is one image, and so is a category.
    """
    try:
        described: dict[str, Any] = json.loads(file.read_bytes())
        for i, of in enumerate(described["images"]):
            if not isinstance(of["file_name"], str):
                raise ValueError(f"image {i}: file_name must be text (got {of['file_name']!r})")
        images = [(i["id"], image_file(folder, i["file_name"])) for i in described["images"]]
        classes = [(c["id"], str(c["name"])) for c in described["categories"]]
        (row, files), (column, names) = _places(images, "image"), _places(classes, "category")
        labels = np.zeros((len(files), len(names)), dtype=bool)
        for i, of in enumerate(described["annotations"]):
            if of.get("iscrowd", 0) and not crowd:
                continue
            for field, known in (("image_id", row), ("category_id", column)):
                if of[field] not in known:
                    listed = "images" if known is row else "categories"
                    raise ValueError(f"annotation {i}: {field} {of[field]!r} is not among {listed}")
            labels[row[of["image_id"]], column[of["category_id"]]] = True
    except KeyError as error:
        raise ValueError(f"{file}: not in COCO's format: {error} is not there") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not in COCO's format ({error})") from None
    if not described["annotations"]:
        raise ValueError(
            f"{file}: annotations must not be empty: no image has a label. CVAT leaves image tags "
            "out of this format: export boxes, or write labels.csv and choose dataset: folder"
        )
    return files, names, labels


def _places(
    pairs: list[tuple[Hashable, Item]], what: str
) -> tuple[dict[Hashable, int], list[Item]]:
    """The place of each id, and what stands there: once, however often it is listed.

    Raises:
        ValueError: for an id that stands for two.
    """
    places: dict[Item, int] = {}
    of_id: dict[Hashable, int] = {}
    for key, item in pairs:
        place = places.setdefault(item, len(places))
        if of_id.setdefault(key, place) != place:
            first, second = (str(of) for of in (list(places)[of_id[key]], item))
            raise ValueError(f"{what} id {key!r} stands for {first!r} and {second!r}")
    return of_id, list(places)
