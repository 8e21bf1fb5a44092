"""FiftyOne: its image classification data set with several labels per image, in simple JSON.

`labels.json` has each sample's labels, `data.json` its image (FiftyOneImageClassificationDataset).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.images import image_suffixes
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

LAYOUT = "a folder in FiftyOne's format FiftyOneImageClassificationDataset: labels.json, and images"


@contextmanager
def write_fiftyone(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row's sample. Samples are numbered: FiftyOne leaves the ending of
    a file out of its name, and `a.jpg` may stand beside `a.png`. Paths in `data.json` are relative
    to `target`, and start from its parent."""
    number = 0

    def write(row: Row) -> None:
        nonlocal number
        number += 1
        tags = [{"label": tag["name"], "confidence": tag["score"]} for tag in row["tags"]]
        before = ",\n" if number > 1 else "\n"
        data.write(f'{before}"{number}": {json.dumps(os.path.join("..", row["file"]))}')
        stream.write(f'{before}"{number}": {json.dumps(tags)}')

    with (
        replacing(target / "labels.json") as labels_part,
        replacing(target / "data.json") as data_part,
        labels_part.open("w", encoding="utf-8") as stream,
        data_part.open("w", encoding="utf-8") as data,
    ):
        stream.write(f'{{"classes": {json.dumps(list(labels))},\n"labels": {{')
        data.write("{")
        yield write
        stream.write("\n}}\n")
        data.write("\n}\n")


def read_fiftyone(categories: CategoryList, root: Path) -> LabelledImages:
    """Read `labels.json` in `root`, and `data.json` or the images in `data/`.

    A sample's target is a label or a list of labels: text, an index into `classes`, or an object
    with `label`. A sample without a target is left out; an empty list shows none of the labels.

    Raises:
        ValueError: with the file and the sample, for what is not in this format, or as
            `labelled_images`.
    """
    file = root / "labels.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing; it must be {LAYOUT}")
    described = read_json(file)
    with reading(file, "classes"):
        classes = [text(name, "a class") for name in described.get("classes") or ()]
        targets: dict[str, Any] = dict(described["labels"])
    paths = _paths(root)
    without_ending: dict[str, list[str]] = {}
    for key in paths:
        stem, ending = os.path.splitext(key)
        if ending.lower() in image_suffixes():
            without_ending.setdefault(stem, []).append(key)
    entries = []
    for sample, target in targets.items():
        place = f"sample {sample!r}"
        with reading(file, place):
            if target is None:
                continue
            several = target if isinstance(target, list) else [target]
            names = frozenset(_name(item, classes) for item in several)
            keys = [sample] if sample in paths else without_ending.get(sample, ())
            if len(keys) > 1:
                raise ValueError(f"must have one image; {keys[0]!r} and {keys[1]!r} have its name")
            image = paths[keys[0]] if keys else sample
            entries.append(Annotated(place, image, names))
    # The one format whose files are wherever the data set says, and may be in many folders.
    within = Path(root.absolute().anchor) if (root / "data.json").is_file() else root.parent
    listed = located([root / "data", root, root.parent], entries, within)
    return labelled_images(categories, file, listed, classes)


def _paths(root: Path) -> dict[str, str]:
    """The image's path, relative to `root` or absolute, by a sample's name.

    The name may have the ending of an image, which FiftyOne leaves out in `labels.json`.
    """
    manifest = root / "data.json"
    if manifest.is_file():
        with reading(manifest, "samples"):
            return {key: text(path, key) for key, path in dict(read_json(manifest)).items()}
    found = sorted(path.relative_to(root) for path in (root / "data").rglob("*.*"))
    return {str(path.relative_to("data")): str(path) for path in found}


def _name(item: Any, classes: list[str]) -> str:
    named = item["label"] if isinstance(item, dict) else item
    if isinstance(named, int) and not isinstance(named, bool) and 0 <= named < len(classes):
        return classes[named]
    return text(named, "label")
