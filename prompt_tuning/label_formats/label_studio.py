"""Label Studio: tasks with our tags as predictions, and its exports of people's annotations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit
from xml.sax.saxutils import quoteattr

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.images import image_suffixes
from prompt_tuning.label_formats.annotations import (
    Annotated,
    labelled_images,
    located,
    only_file,
    read_json,
    reading,
    text,
)
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.plain_text import as_named, xml_plain
from prompt_tuning.storage import VERSION_DIGITS, replacing, write_atomic

LAYOUT = "a folder with Label Studio's export (JSON or JSON-MIN) and the images"

_LOCAL = "/data/local-files/?d="
_UPLOADED = re.compile(r".*/data/upload/(?:[^/]+/)*[0-9a-f]{8}-(.+)")
# Of the results of an annotation, those that name labels: choices, rectanglelabels …
_NAMES_LABELS = re.compile(r"choices|\w*labels")


@contextmanager
def write_label_studio(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row's task; beside `target`, write the labelling config.

    Images are local files below Label Studio's document root. A prediction's score is that of its
    least certain tag; all scores are in the task's data.
    """
    version = f"datafree {made_with.get('artifact', '')!s:.{VERSION_DIGITS}}".strip()
    before = "[\n"

    def write(row: Row) -> None:
        nonlocal before
        tags = row["tags"]
        choices = {"choices": [tag["name"] for tag in tags]}
        result = {"from_name": "tags", "to_name": "image", "type": "choices", "value": choices}
        prediction: dict[str, Any] = {"model_version": version, "result": [result] if tags else []}
        if tags:
            prediction["score"] = min(tag["score"] for tag in tags)
        data = {
            "image": _LOCAL + quote(os.fsencode(as_named(row["file"]))),
            "scores": {tag["name"]: tag["score"] for tag in tags},
        }
        stream.write(before + json.dumps({"data": data, "predictions": [prediction]}))
        before = ",\n"

    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield write
        stream.write("\n]\n" if before == ",\n" else "[]\n")
    write_atomic(config_file(target), _config(labels).encode())


def config_file(target: Path) -> Path:
    """The labelling config beside a file of tasks."""
    return target.with_suffix(".config.xml")


def _config(labels: Sequence[str]) -> str:
    choices = "".join(f"    <Choice value={quoteattr(xml_plain(name))}/>\n" for name in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Choices name="tags" toName="image" choice="multiple" showInline="true">\n'
        f"{choices}  </Choices>\n</View>\n"
    )


def read_label_studio(categories: CategoryList, root: Path) -> LabelledImages:
    """Read the one JSON file in `root`: Label Studio's export as JSON or JSON-MIN.

    Choices and the labels of regions count. Tasks without an annotation, and annotations that were
    skipped, are left out. A label is unknown for an image where annotations disagree about it.
    Where a label was predicted and nobody chose it on any image, no labelled image shows it.

    Raises:
        ValueError: with the file and the task, for what is not such an export; if it has no
            annotations; or as `labelled_images`.
    """
    file = only_file(root, "*.json", LAYOUT)
    tasks = read_json(file)
    if not isinstance(tasks, list):
        raise ValueError(f"{file}: not Label Studio's export: must be a list of tasks")
    fields = _choice_fields(tasks)
    answers: dict[str, tuple[str, list[frozenset[str]]]] = {}
    predicted: dict[str, None] = {}
    for number, task in enumerate(tasks, 1):
        place = f"task {number}"
        with reading(file, place):
            whole = "data" in task
            image = _image(task["data"] if whole else task)
            sets = list(_annotations(task) if whole else [_flat_labels(task, fields)])
            for prediction in task.get("predictions", ()) if whole else ():
                if isinstance(prediction, dict):  # some exports have its number only
                    predicted.update(dict.fromkeys(_labels(prediction["result"])))
        if sets:
            answers.setdefault(image, (place, []))[1].extend(sets)
    if not answers:
        has = "predictions but no annotations" if predicted else "no annotations"
        raise ValueError(f"{file}: has {has}: nobody has labelled an image yet")
    entries = [
        Annotated(
            place,
            image,
            frozenset.intersection(*sets),
            frozenset.union(*sets) - frozenset.intersection(*sets),
        )
        for image, (place, sets) in answers.items()
    ]
    return labelled_images(categories, file, located([root], entries, root), predicted)


def _image(data: dict[str, Any]) -> str:
    """The file's name of a task's image, from its URL."""
    for value in data.values():
        if not isinstance(value, str):
            continue
        url = value.strip()
        if "/data/local-files/" in url:
            name = re.sub(r".*[?&]d=([^&]*).*", r"\1", url)
        elif uploaded := _UPLOADED.fullmatch(url):
            name = uploaded[1]
        elif "://" in url:
            name = urlsplit(url).path.lstrip("/")
        else:
            name = quote(os.fsencode(url))  # a path
        name = os.fsdecode(unquote_to_bytes(name))
        if name.lower().endswith(image_suffixes()) or "/data/local-files/" in url:
            return name
    raise ValueError("no field of its data is an image's URL or path")


def _annotations(task: dict[str, Any]) -> Iterator[frozenset[str]]:
    """The labels of each annotation that was not skipped."""
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            yield frozenset(_labels(annotation["result"]))


def _labels(results: list[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        kind = result.get("type", "")
        if _NAMES_LABELS.fullmatch(kind):
            yield from (text(name, kind) for name in result["value"].get(kind, ()))


def _flat_labels(task: dict[str, Any], fields: set[str]) -> frozenset[str]:
    """The labels of a task of JSON-MIN. In `fields`, a single choice is plain text."""
    names: set[str] = set()
    for field, value in task.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and field in fields:
                names.add(item)
            for kind, named in item.items() if isinstance(item, dict) else ():
                if _NAMES_LABELS.fullmatch(kind) and isinstance(named, list):
                    names |= {text(name, field) for name in named}
    return frozenset(names)


def _choice_fields(tasks: list[Any]) -> set[str]:
    """The fields of tasks of JSON-MIN that have choices: some task has several in it, or the field
    is named as Label Studio's templates or our labelling config name it."""
    several = {
        field
        for task in tasks
        if isinstance(task, dict)
        for field, value in task.items()
        if isinstance(value, dict) and isinstance(value.get("choices"), list)
    }
    return {"choice", "tags", *several}
