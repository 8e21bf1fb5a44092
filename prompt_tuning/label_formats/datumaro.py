"""Datumaro: a folder with `annotations/default.json`, each tag a label of its item."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.label_formats.annotations import (
    Annotated,
    labelled_images,
    located,
    read_json,
    reading,
    text,
)
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.storage import replacing

LAYOUT = "a folder in Datumaro's format: annotations/*.json, and the images"

_SUBSET = "default"


@contextmanager
def write_datumaro(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row's item. Datumaro takes it with the images in
    `images/default/`, or without them."""
    index = {name: i for i, name in enumerate(labels)}
    before = "\n"

    def write(row: Row) -> None:
        nonlocal before
        file = row["file"]
        item = {
            "id": os.path.splitext(file)[0],
            "annotations": [
                {
                    "id": i,
                    "type": "label",
                    "group": 0,
                    "label_id": index[tag["name"]],
                    "attributes": {"score": tag["score"]},
                }
                for i, tag in enumerate(row["tags"])
            ],
            "image": {"path": file},
        }
        stream.write(before + json.dumps(item))
        before = ",\n"

    head = {
        "dm_format_version": "1.0",
        "infos": {"datafree": made_with},
        "categories": {
            "label": {
                "labels": [{"name": name, "parent": "", "attributes": []} for name in labels],
                "attributes": [],
            }
        },
    }
    with (
        replacing(target / "annotations" / f"{_SUBSET}.json") as temporary,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        stream.write(json.dumps(head)[:-1] + ',\n"items": [')
        yield write
        stream.write("\n]}\n")


def read_datumaro(categories: CategoryList, root: Path) -> LabelledImages:
    """Read all of `annotations/*.json` in `root`.

    Labels count, and the labels of boxes and other shapes. An item without any shows none of the
    labels. Images are in `images/`, in a folder of the subset's name there, or beside `root`.

    Raises:
        ValueError: with the file and the item, for what is not in Datumaro's format, or as
            `labelled_images`.
    """
    files = sorted((root / "annotations").glob("*.json"))
    if not files:
        raise ValueError(f"{root}: annotations/*.json is missing; it must be {LAYOUT}")
    entries: list[tuple[Path, Annotated]] = []
    classes: list[str] = []
    for file in files:
        described = read_json(file)
        with reading(file, "categories"):
            listed = described["categories"]["label"]["labels"]
            names = [text(label["name"], "name") for label in listed]
            items = list(described["items"])
        classes += names
        of_file = []
        for number, item in enumerate(items, 1):
            with reading(file, f"item {number}"):
                image = item.get("image") or item.get("media") or {}
                of_file.append(
                    Annotated(
                        f"{file.name}, item {number}",
                        text(image.get("path") or item["id"], "path"),
                        frozenset(_shown(item.get("annotations", ()), names)),
                    )
                )
        images = root / "images"
        entries += located([images / file.stem, images, root, root.parent], of_file, root.parent)
    return labelled_images(categories, root, entries, classes)


def _shown(annotations: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
    for annotation in annotations:
        index = annotation.get("label_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(names):
            raise ValueError(f"label_id must be from 0 to {len(names) - 1} (got {index!r})")
        yield names[index]
