"""What annotation tools say about images, by names: read with clear errors, found on disk, merged.

Each tool's module reads its own files and gives an `Annotated` for each image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import (
    LabelledImages,
    existing_image,
    image_file,
    labels_over,
)

_TRIED = 50


class Annotated(NamedTuple):
    """An image that somebody labelled: where that stands (`item 3`), its file's name, its labels.

    `unsure`: labels that count neither as shown nor as not shown.
    """

    place: str
    image: str
    names: frozenset[str]
    unsure: frozenset[str] = frozenset()


def only_file(folder: Path, pattern: str, layout: str) -> Path:
    """The one file with a pattern. Raises ValueError if there is none, or more than one."""
    files = sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))
    if len(files) == 1:
        return files[0]
    if not files:
        raise ValueError(f"{folder}: {pattern} is missing; it must be {layout}")
    raise ValueError(
        f"{folder}: must have one {pattern} (got {files[0].name} and {files[1].name}); "
        f"it must be {layout}"
    )


def read_json(file: Path) -> Any:
    """A JSON file. Raises ValueError with the file and the place of a mistake."""
    try:
        return json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"{file}: not JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None


@contextmanager
def reading(file: Path, place: str) -> Iterator[None]:
    """Name the file and the place in it of an entry that is not as its format says.

    Raises:
        ValueError: in place of the errors that such an entry causes.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{file}: {place}: {error} is missing") from None
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: {place}: not as expected ({error})") from None


def text(value: Any, field: str) -> str:
    """A value that must be text. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be text (got {value!r})")
    return value


def located(
    folders: Sequence[Path], entries: Sequence[Annotated], root: Path
) -> list[tuple[Path, Annotated]]:
    """Each image's file, in the folder where most of the images are found.

    Tools name images from a folder of their own: folders that all names begin with may be missing.
    Images that are gone are listed too, so that what reads images can say which are gone.
    `root`: the folder that all of `folders` are in.

    Raises:
        ValueError: with the place, for a name that leads out of `root`.
    """
    names = [entry.image for entry in entries]
    shared = _shared_folders(names)
    choices = [(folder, skip) for folder in folders for skip in range(len(shared) + 1)]
    tried = names[:: max(1, len(names) // _TRIED)]

    def found(choice: tuple[Path, int]) -> int:
        folder, skip = choice
        return sum(existing_image(folder, _without(skip, name), root) is not None for name in tried)

    folder, skip = max(choices, key=found)  # the first of equals
    files = []
    for entry in entries:
        try:
            files.append((image_file(folder, _without(skip, entry.image), root), entry))
        except ValueError as error:
            raise ValueError(f"{entry.place}: {error}") from None
    return files


def labelled_images(
    categories: CategoryList,
    source: Path,
    entries: Sequence[tuple[Path, Annotated]],
    classes: Iterable[str] = (),
) -> LabelledImages:
    """The labels over a run's categories, `(images, categories)`.

    `source`: the file or folder of the annotations, for messages. `entries`: as `located` gives
    them. `classes`: labels that the annotators could choose; those that nobody chose are not shown.

    Raises:
        ValueError: if no image is labelled, if one is labelled twice and differently, or, with the
            labels, if none of them is in the category list.
    """
    if not entries:
        raise ValueError(f"{source}: no image is labelled")
    by_file: dict[Path, Annotated] = {}
    for file, entry in entries:
        before = by_file.setdefault(file, entry)
        if (before.names, before.unsure) != (entry.names, entry.unsure):
            raise ValueError(
                f"{source}: {before.place} and {entry.place} disagree about {entry.image!r} "
                f"({_listed(before.names)}; {_listed(entry.names)})"
            )
    chosen = {name for _, entry in entries for name in entry.names | entry.unsure}
    column = {name: i for i, name in enumerate(dict.fromkeys([*classes, *sorted(chosen)]))}
    if not column:
        raise ValueError(f"{source}: no image has a label")
    labels = np.zeros((len(by_file), len(column)), dtype=bool)
    unsure = np.zeros_like(labels)
    for row, entry in enumerate(by_file.values()):
        labels[row, [column[name] for name in entry.names]] = True
        unsure[row, [column[name] for name in entry.unsure]] = True
    names = [(name,) for name in column]
    try:
        return labels_over(categories, tuple(by_file), names, labels, unsure)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)[:5]) or "no label"


def _shared_folders(names: list[str]) -> list[str]:
    parts = [name.replace("\\", "/").split("/")[:-1] for name in names]
    pairs = zip(min(parts, default=[]), max(parts, default=[]), strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _without(skip: int, name: str) -> str:
    """A name without the first `skip` folders."""
    return "/".join(name.replace("\\", "/").split("/")[skip:]) if skip else name
