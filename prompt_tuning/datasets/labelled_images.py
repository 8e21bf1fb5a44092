"""Labelled images: their files, what each shows, and which of it counts."""

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
from prompt_tuning.storage import digest, file_digest


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels `(images, classes)`, bool.

    `ignored`: `(images, classes)`, bool: entries that count neither as positive nor as negative;
    None where every entry counts. `other_classes`: names of annotated classes that are none of
    these; nothing else is known of them.
    """

    files: tuple[Path, ...]
    labels: np.ndarray
    ignored: np.ndarray | None = None
    other_classes: tuple[str, ...] = ()

    @cached_property
    def contents(self) -> list[str | None]:
        """SHA-256 (hex) of each file's content, None where there is no file."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(_content, self.files))

    def digest(self) -> str:
        """SHA-256 (hex) over all that is here, with the files' names and contents."""
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
        """A sentence that names the classes that are left out, the first ten of many."""
        count, first = len(self.other_classes), ", ".join(self.other_classes[:10])
        more = f" and {count - 10} more" if count > 10 else ""
        return f"Left out, as the list does not have them: {first}{more}."

    def save(self, file: Path) -> None:
        """Write the labels and the files' paths, not their pixels."""
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
        """Read what `save` wrote."""
        with np.load(file) as arrays:
            files = tuple(Path(image) for image in arrays["files"])
            others = tuple(arrays["other_classes"].tolist())
            return cls(files, arrays["labels"], arrays.get("ignored"), others)


def image_file(folder: Path, name: str) -> Path:
    """The file that is meant by a name in annotations; it need not be there.

    The exact name wins. Names as they come from other systems and tools find it too: with blanks
    around them, with backslashes, with `./`, or with accents in the other of Unicode's two forms.
    """
    plain = os.path.normpath(name.strip().replace("\\", "/"))
    forms = (unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))
    for spelling in (os.path.normpath(name), plain, *forms):
        if os.path.isfile(folder / spelling):  # unlike Path's, it takes what is too long for a name
            return folder / spelling
    return folder / plain


def labels_over(
    categories: CategoryList,
    files: Sequence[Path],
    classes: Sequence[Sequence[str]],
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
) -> LabelledImages:
    """A data set over a run's categories, `(images, categories)`.

    A class goes to the category that shares a name with it, by `CategoryList.find`. A category
    with several classes shows where any of them does. A category without a class is ignored on
    every image: the data set says nothing about it.

    Args:
        classes: of each class all its names, its official one first.
        labels: `(images, classes)`, bool.
        ignored: `(images, classes)`, bool.

    Raises:
        ValueError: listing the classes, when none is a category of the list.
    """
    found = ({categories.find(name) for name in names} for names in classes)
    places = [of_class - {None} for of_class in found]
    over = np.zeros((len(labels), len(categories)), dtype=bool)
    uncounted = np.ones_like(over)
    for c in range(len(categories)):
        columns = [i for i, of_class in enumerate(places) if c in of_class]
        if columns:
            over[:, c] = labels[:, columns].any(1)
            unsure = ignored[:, columns].any(1) if ignored is not None else False
            uncounted[:, c] = unsure & ~over[:, c]
    if not any(places):
        listed = ", ".join(of_class[0] for of_class in classes)
        raise ValueError(f"no class of the data set is a category of the list; there are: {listed}")
    others = (
        names[0]
        for names, of_class, column in zip(classes, places, labels.T, strict=True)
        if column.any() and not of_class
    )
    return LabelledImages(
        tuple(files), over, uncounted if uncounted.any() else None, tuple(sorted(others))
    )


def readable(images: LabelledImages) -> tuple[LabelledImages, dict[Path, str]]:
    """The images that can be read, all decoded to find out, and why each other one cannot.

    Raises:
        ValueError: when none of those that can be read shows a category.
    """
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem_of, images.files))
    rows = [i for i, problem in enumerate(problems) if problem is None]
    if not images.labels[rows].any():
        raise ValueError(f"no image that can be read shows any category ({len(rows)} can be)")
    kept = replace(
        images,
        files=tuple(images.files[i] for i in rows),
        labels=images.labels[rows],
        ignored=None if images.ignored is None else images.ignored[rows],
    )
    return kept, {
        file: problem
        for file, problem in zip(images.files, problems, strict=True)
        if problem is not None
    }


def problem_of(file: Path) -> str | None:
    """Why an image cannot be read, None when it can."""
    try:
        open_image(file)
    except ValueError as error:
        return str(error)
    return None


def _entries_digest(entries: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(entries).tobytes()).hexdigest()


def _content(file: Path) -> str | None:
    try:
        return file_digest(file) if file.is_file() else None  # reading a pipe would never end
    except OSError:
        return None
