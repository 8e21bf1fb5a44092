"""Labelled images: their files, what each shows, and which of it counts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.image_files import open_image
from prompt_tuning.store import digest


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels `(images, classes)`, bool.

    `ignored`: `(images, classes)`, bool: entries that count neither as positive nor as negative;
    None where every entry counts.
    """

    files: tuple[Path, ...]
    labels: np.ndarray
    ignored: np.ndarray | None = None

    def digest(self) -> str:
        """SHA-256 (hex) over the files' names and sizes, the labels and what is ignored."""
        return digest(
            {
                "files": [[str(file), _size(file)] for file in self.files],
                "labels": _entries_digest(self.labels),
                "ignored": None if self.ignored is None else _entries_digest(self.ignored),
            }
        )

    def save(self, file: Path) -> None:
        """Write the labels and the files' paths, not their pixels."""
        files = np.array([str(image) for image in self.files])
        if self.ignored is None:
            np.savez_compressed(file, files=files, labels=self.labels)
        else:
            np.savez_compressed(file, files=files, labels=self.labels, ignored=self.ignored)

    @classmethod
    def load(cls, file: Path) -> LabelledImages:
        """Read what `save` wrote."""
        with np.load(file) as arrays:
            files = tuple(Path(image) for image in arrays["files"])
            return cls(files, arrays["labels"], arrays.get("ignored"))


def labels_over(
    categories: CategoryList,
    classes: Sequence[Sequence[str]],
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A data set's labels over a run's categories, `(images, categories)`, and what is ignored.

    A class goes to each category that shares a name with it; case, spaces and hyphens do not
    matter. A category with several classes shows where any of them does. A category without a
    class is ignored on every image: the data set says nothing about it.

    Args:
        classes: of each class all its names, its official one first.
        labels: `(images, classes)`, bool.
        ignored: `(images, classes)`, bool.

    Raises:
        ValueError: listing the classes, when none is a category of the list.
    """
    names = [{_plain(name) for name in of_class} for of_class in classes]
    over = np.zeros((len(labels), len(categories)), dtype=bool)
    uncounted = np.ones_like(over)
    known = False
    for c, category in enumerate(categories.categories):
        own = {_plain(name) for name in category.names}
        columns = [i for i, of_class in enumerate(names) if own & of_class]
        if columns:
            known = True
            over[:, c] = labels[:, columns].any(1)
            unsure = ignored[:, columns].any(1) if ignored is not None else False
            uncounted[:, c] = unsure & ~over[:, c]
    if not known:
        listed = ", ".join(of_class[0] for of_class in classes)
        raise ValueError(f"no class of the data set is a category of the list; there are: {listed}")
    return over, uncounted if uncounted.any() else None


def category_indices(categories: CategoryList) -> dict[str, int]:
    """Position on the classes axis by each name and synonym, for labels that people wrote."""
    return {name: c for c, category in enumerate(categories.categories) for name in category.names}


def readable(images: LabelledImages) -> tuple[LabelledImages, dict[Path, str]]:
    """The images that can be read, all decoded to find out, and why each other one cannot.

    Raises:
        ValueError: when none of those that can be read shows a category.
    """
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem_of, images.files))
    rows = [i for i, problem in enumerate(problems) if problem is None]
    if not images.labels[rows].any():
        raise ValueError(f"no picture that can be read shows any category ({len(rows)} can be)")
    ignored = None if images.ignored is None else images.ignored[rows]
    kept = LabelledImages(tuple(images.files[i] for i in rows), images.labels[rows], ignored)
    return kept, {
        file: problem
        for file, problem in zip(images.files, problems, strict=True)
        if problem is not None
    }


def problem_of(file: Path) -> str | None:
    """Why a picture cannot be read, None when it can."""
    try:
        open_image(file)
    except ValueError as error:
        return str(error)
    return None


def _entries_digest(entries: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(entries).tobytes()).hexdigest()


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())
