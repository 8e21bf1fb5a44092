"""Labelled images: their files, their labels, and which labels count."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.images import open_image
from prompt_tuning.plain_text import as_named
from prompt_tuning.storage import digest, file_digest


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels `(images, classes)`, bool.

    `ignored`: `(images, classes)`, bool: entries that count neither as positive nor as negative;
    None if every entry counts. `other_classes`: names of annotated classes that are not among the
    classes.
    """

    files: tuple[Path, ...]
    labels: np.ndarray
    ignored: np.ndarray | None = None
    other_classes: tuple[str, ...] = ()

    @cached_property
    def contents(self) -> list[str | None]:
        """SHA-256 (hex) of each file's content, None if it cannot be read."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(_content, self.files))

    def digest(self) -> str:
        """SHA-256 (hex) of the files' names and contents and of all labels."""
        return digest(
            {
                "files": [ascii(str(file)) for file in self.files],
                "contents": self.contents,
                "labels": _entries_digest(self.labels),
                "ignored": None if self.ignored is None else _entries_digest(self.ignored),
                "other_classes": self.other_classes,
            }
        )

    def describe_other_classes(self) -> str:
        """A sentence that lists the first ten of the classes that are left out."""
        count, first = len(self.other_classes), ", ".join(self.other_classes[:10])
        more = f" and {count - 10} more" if count > 10 else ""
        return f"Left out, because the category list does not have them: {first}{more}."

    def save(self, file: Path) -> None:
        """Write the labels and the paths of the files, without their pixels."""
        arrays: dict[str, Any] = {
            "files": np.array([str(image) for image in self.files]),
            "labels": self.labels,
            "other_classes": np.array(self.other_classes, dtype=str),
        }
        if self.ignored is not None:
            arrays["ignored"] = self.ignored
        np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> LabelledImages:
        """Read a file that `save` wrote."""
        with np.load(file) as arrays:
            files = tuple(Path(image) for image in arrays["files"])
            others = tuple(arrays["other_classes"].tolist())
            return cls(files, arrays["labels"], arrays.get("ignored"), others)


def image_file(folder: Path, name: str, root: Path | None = None) -> Path:
    """The image file with a name from annotations; it may not exist.

    The name's matches are those of `existing_image`. `root`: `folder` or a folder above it.

    Raises:
        ValueError: for a name that leads out of `root`.
    """
    if file := existing_image(folder, name, root):
        return file
    file = _inside(root or folder, folder, _plain_path(name))
    if file is None:
        raise ValueError(f"an image must be in {root or folder} (got {name!r})")
    return file


def existing_image(folder: Path, name: str, root: Path | None = None) -> Path | None:
    """The image file with a name from annotations, or None.

    The exact name wins, with the original bytes where `plain` escaped it. Otherwise names of other
    systems and tools match too: with spaces around them, with backslashes, with `./`, or with
    accents in the other Unicode normal form. A name that leads out of `root` (`folder`, if it is
    not given) by `..` or from the file system's root matches nothing: annotations may be anyone's,
    and what they name is shown on pages. A link in the folder is its owner's, and is followed.
    """
    plain = _plain_path(name)
    forms = (unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))
    for spelling in (os.path.normpath(as_named(name)), os.path.normpath(name), plain, *forms):
        # Unlike Path.is_file, this accepts names that are too long.
        file = _inside(root or folder, folder, spelling)
        if file and os.path.isfile(file):
            return file
    return None


def _plain_path(name: str) -> str:
    return os.path.normpath(name.strip().replace("\\", "/"))


def _inside(root: Path, folder: Path, path: str) -> Path | None:
    """The file with a normal path from `folder`; None if that leads out of `root`."""
    if not path.startswith((os.sep, os.pardir)):
        return folder / path
    file = os.path.normpath(folder / path)  # of names: `..` of a link is not its target's parent
    within = (os.path.join(base(root), "") for base in (os.path.abspath, os.path.realpath))
    return Path(file) if os.path.abspath(file).startswith(tuple(within)) else None


def read_lines(file: Path, where_to_get: str) -> list[str]:
    """The lines of a benchmark's file that are not empty. Raises ValueError if it is missing."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; {where_to_get}")
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def labels_over(
    categories: CategoryList,
    files: Sequence[Path],
    classes: Sequence[Sequence[str]],
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
) -> LabelledImages:
    """Map the labels of a data set to a run's categories, `(images, categories)`.

    A class belongs to the category with one of its names, by `CategoryList.find`. A category with
    several classes is positive if any of them is. A category without a class is ignored on every
    image, because the data set says nothing about it.

    Args:
        classes: all names of each class, the official one first.
        labels: `(images, classes)`, bool.
        ignored: `(images, classes)`, bool.

    Raises:
        ValueError: with the classes, if none of them is in the category list.
    """
    found = ({categories.find(name) for name in names} for names in classes)
    targets = [indices - {None} for indices in found]
    over = np.zeros((len(labels), len(categories)), dtype=bool)
    uncounted = np.ones_like(over)
    for c in range(len(categories)):
        columns = [i for i, target in enumerate(targets) if c in target]
        if columns:
            over[:, c] = labels[:, columns].any(1)
            unsure = ignored[:, columns].any(1) if ignored is not None else False
            uncounted[:, c] = unsure & ~over[:, c]
    if not any(targets):
        listed = ", ".join(names[0] for names in classes)
        raise ValueError(f"no class of the data set is in the category list; there are: {listed}")
    others = (
        names[0]
        for names, target, column in zip(classes, targets, labels.T, strict=True)
        if column.any() and not target
    )
    return LabelledImages(
        tuple(files), over, uncounted if uncounted.any() else None, tuple(sorted(others))
    )


def readable(images: LabelledImages) -> tuple[LabelledImages, dict[Path, str]]:
    """Decode all images; return the readable ones, and the problem of each other file.

    Raises:
        ValueError: if none of the readable images shows a category.
    """
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem_of, images.files))
    rows = [i for i, problem in enumerate(problems) if problem is None]
    if not images.labels[rows].any():
        raise ValueError(f"none of the {len(rows)} readable images shows any category")
    kept = replace(
        images,
        files=tuple(images.files[i] for i in rows),
        labels=images.labels[rows],
        ignored=None if images.ignored is None else images.ignored[rows],
    )
    return kept, {images.files[i]: problem for i, problem in enumerate(problems) if problem}


def problem_of(file: Path) -> str | None:
    """Why an image cannot be read, or None if it can."""
    try:
        open_image(file)
    except ValueError as error:
        return str(error)
    return None


def _entries_digest(entries: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(entries).tobytes()).hexdigest()


def _content(file: Path) -> str | None:
    try:
        return file_digest(file) if file.is_file() else None  # reading a pipe would block
    except OSError:
        return None
