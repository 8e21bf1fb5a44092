"""YOLO's text files: a folder with `data.yaml` and a file of label indices for each image.

YOLO knows boxes, not tags of images: each of our lines is a box of the whole image, because its
readers take no line without one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.images import image_suffixes
from prompt_tuning.label_formats.annotations import (
    Annotated,
    labelled_images,
    located,
    reading,
    text,
)
from prompt_tuning.label_formats.tag_row import Row, file_of
from prompt_tuning.plain_text import plain_lines
from prompt_tuning.storage import naming

LAYOUT = "a folder in YOLO's format: data.yaml (or classes.txt), labels/ with text files, images/"

_WHOLE_IMAGE = "0.5 0.5 1 1"


@contextmanager
def write_yolo(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that writes a row's label file.

    That function raises ValueError for two images whose names differ in their endings only, because
    they would have the same label file.
    """
    index = {name: i for i, name in enumerate(labels)}
    names = "".join(f"  {i}: {json.dumps(name)}\n" for name, i in index.items())
    data = f"path: .\ntrain: images\nval: images\nnames:\n{names}"
    with _new_folder(target) as staging:
        (staging / "data.yaml").write_text(data, "utf-8")
        (staging / "labels").mkdir()

        def write(row: Row) -> None:
            of_image = staging / "labels" / file_of(row).with_suffix(".txt")
            of_image.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{index[tag['name']]} {_WHOLE_IMAGE}\n" for tag in row["tags"])
            try:
                with of_image.open("x", encoding="utf-8") as stream:
                    stream.write(lines)
            except FileExistsError:
                raise ValueError(
                    f"{row['file']}: another image has this name with another ending, and YOLO "
                    "would have one label file for both; choose another format"
                ) from None

        yield write


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `target` once it is complete."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        with naming(target):
            yield staging
            staging.chmod(0o755)
            os.sync()  # once, not for each of very many small files
            os.rename(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def read_yolo(categories: CategoryList, root: Path) -> LabelledImages:
    """Read the text files below `labels/` in `root`; the first number of each line is a label.

    The images have the same names below `images/`, below `root`, or beside it.

    Raises:
        ValueError: with the file and the line, for what is not in this format; with the file, if
            two images have its name; or as `labelled_images`.
    """
    names = _names(root)
    folder = root / "labels"
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise ValueError(f"{folder}: has no text files; it must be {LAYOUT}")
    images = _Images([root / "images", root, root.parent])
    entries = []
    for file in files:
        place = str(file.relative_to(folder))
        shown = set()
        for number, line in enumerate(plain_lines(file.read_bytes(), str(file)), 1):
            if line.strip():
                with reading(file, f"line {number}"):
                    shown.add(_name(line.split()[0], names))
        entries.append(Annotated(place, images.of(place), frozenset(shown)))
    listed = located(images.folders, entries, root.parent)
    return labelled_images(categories, folder, listed, names.values())


def _names(root: Path) -> dict[int, str]:
    """The label names by index. Raises ValueError."""
    for name in ("data.yaml", "dataset.yaml"):
        if (file := root / name).is_file():
            try:
                described = yaml.safe_load(file.read_bytes())
            except (yaml.YAMLError, RecursionError) as error:
                line = " ".join(str(error).split())
                raise ValueError(f"{file}: not YAML ({line})") from None
            with reading(file, "names"):
                names = described["names"]
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                return {int(i): text(name, "a name") for i, name in pairs}
    for name in ("classes.txt", "obj.names"):
        if (file := root / name).is_file():
            lines = plain_lines(file.read_bytes(), str(file))
            return {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    raise ValueError(f"{root}: data.yaml is missing; it must be {LAYOUT}")


def _name(index: str, names: dict[int, str]) -> str:
    if not re.fullmatch("[0-9]{1,9}", index) or int(index) not in names:
        raise ValueError(f"must begin with an index of data.yaml's names (got {index[:80]!r})")
    return names[int(index)]


class _Images:
    """Finds the image of a label file by its name without the ending."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self._named: dict[Path, dict[str, list[str]]] = {}

    def of(self, label_file: str) -> str:
        """The image's name, or that of the label file if no image has it.

        Raises:
            ValueError: for two images whose names differ in their endings only.
        """
        name = label_file.removesuffix(".txt")
        inner, stem = os.path.split(name)
        for folder in self.folders:
            images = self._in(folder / inner).get(stem, ())
            if len(images) > 1:
                raise ValueError(
                    f"{label_file}: must have one image; {images[0]} and {images[1]} in "
                    f"{folder / inner} have its name"
                )
            if images:
                return os.path.join(inner, images[0])
        return label_file

    def _in(self, folder: Path) -> dict[str, list[str]]:
        """The images in a folder, by their names without endings."""
        if folder not in self._named:
            named = self._named[folder] = {}
            for image in sorted(os.listdir(folder)) if folder.is_dir() else ():
                if image.lower().endswith(image_suffixes()):
                    named.setdefault(os.path.splitext(image)[0], []).append(image)
        return self._named[folder]
