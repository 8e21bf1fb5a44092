"""Your own photos in a folder, with a table of their labels, or answers from the review."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets import review_answers
from prompt_tuning.datasets.labelled_images import LabelledImages, existing_image
from prompt_tuning.plain_text import decoded

LAYOUT = (
    "a folder with labels.csv: rows of path,label;label for each photo; or with the review.csv of "
    "`datafree serve --review`"
)

_COLUMN_SEPARATORS = ",;\t"
_LABEL_SEPARATORS = ";|,"
# Column names in a header.
_HEADER_OF_FILES = re.compile(
    r"((image|img|photo|image|file)s?[ _-]?)?(files?|filename|name|path|id|url)|"
    r"(image|img|photo|image)s?",
    re.I,
)
_HEADER_OF_LABELS = re.compile(r"(labels?|class(es)?|tags?|categor(y|ies))([ _-]?names?)?", re.I)
_ROWS_TRIED = 50
_LISTED = 10
_VALUES = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

Row = tuple[int, list[str]]  # row number in the table, cells
Find = Callable[[str], int | None]  # label -> index of its category


def read_folder(categories: CategoryList, folder: Path) -> LabelledImages:
    """Read photos with the labels in `labels.csv`, which are names or synonyms of categories.

    The answers in `review.csv` win over these, or stand alone (see `with_answers`).

    A row has the path of an image and its labels, in one column with `;`, `|` or `,` between them
    or in several columns. An image without labels shows no category. Rows of the same image are
    merged. Alternatively the header names the labels, and each row has a 1 or 0 for each of them.
    Columns are separated by commas, semicolons or tabs. A header (`image`, `filename,labels`) and
    empty rows are skipped.

    Raises:
        ValueError: with the row, for a missing image, unknown labels, or rows that contradict each
            other, or with the table, if it is missing, empty, or not a CSV file in UTF-8 or UTF-16.
    """
    table = folder / "labels.csv"
    reviewed = (folder / review_answers.FILE).is_file()
    if table.is_file():
        images = _read_table(categories, folder, table)
    elif reviewed:
        images = LabelledImages((), np.zeros((0, len(categories)), dtype=bool))
    else:
        raise ValueError(f"{table} is missing: rows of path,label;label for each photo")
    return review_answers.with_answers(images, categories, folder) if reviewed else images


def _read_table(categories: CategoryList, folder: Path, table: Path) -> LabelledImages:
    find = categories.find
    try:
        rows = _rows(decoded(table.read_bytes()), folder)
        header = rows.pop(0) if rows and _is_header(rows[0], folder, find) else (0, [])
        columns = any(find(cell) is not None for cell in header[1][1:])
        files = [_file(row, folder) for row in rows]
        shown = _from_columns(header, rows, find) if columns else _from_lists(rows, find)
        if not files:
            raise ValueError("must list at least one photo")
        merged: dict[Path, tuple[int, Path, set[int]]] = {}
        for (number, _), file, labels in zip(rows, files, shown, strict=True):
            first, _, before = merged.setdefault(file.resolve(), (number, file, set(labels)))
            if before != labels if columns else bool(before) != bool(labels):
                raise ValueError(f"rows {first} and {number} contradict each other about {file}")
            before |= labels
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{table}: {error}") from None
    over = np.zeros((len(merged), len(categories)), dtype=bool)
    for i, (_, _, labels) in enumerate(merged.values()):
        over[i, list(labels)] = True
    return LabelledImages(tuple(file for _, file, _ in merged.values()), over)


def _rows(text: str, folder: Path) -> list[Row]:
    """The rows that are not empty, split by the separator that finds most image files."""
    split: dict[str, list[Row]] = {}
    for separator in _COLUMN_SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        numbered = enumerate(reader, start=1)
        split[separator] = [row for row in numbered if any(cell.strip() for cell in row[1])]

    def fits(rows: list[Row]) -> tuple[int, int]:
        names = [cells[0] for _, cells in rows[:_ROWS_TRIED]]
        found = sum(existing_image(folder, name) is not None for name in names)
        return found, -len("".join(names[:1]))  # a tie: the separator that occurs first

    return max(split.values(), key=fits)


def _is_header(row: Row, folder: Path, find: Find) -> bool:
    name, *cells = row[1]
    if Path(name.strip()).suffix or existing_image(folder, name):
        return False
    names = [cell for cell in cells if cell.strip()]
    return bool(_HEADER_OF_FILES.fullmatch(name.strip())) or (
        bool(names)
        and all(_HEADER_OF_LABELS.fullmatch(c.strip()) or find(c) is not None for c in names)
    )


def _file(row: Row, folder: Path) -> Path:
    number, (name, *cells) = row
    if not cells:
        raise ValueError(f"row {number}: must be path,label;label (got {name!r})")
    file = existing_image(folder, name)
    if file is None:
        raise ValueError(f"row {number}: {name!r} must be a file in {folder}")
    return file


def _from_lists(rows: list[Row], find: Find) -> list[set[int]]:
    """The categories of each row, where cells list labels."""
    shown: list[set[int]] = []
    unknown: dict[str, int] = {}
    for number, (_, *cells) in rows:
        labels = {label: find(label) for cell in cells for label in _labels(cell, find)}
        shown.append({category for category in labels.values() if category is not None})
        for label, category in labels.items():
            if category is None:
                unknown.setdefault(label, number)
    _refuse(unknown)
    return shown


def _labels(cell: str, find: Find, separators: str = _LABEL_SEPARATORS) -> list[str]:
    """The labels in a cell. Text that is itself a label is not split."""
    cell = cell.strip()
    if not separators or not cell or find(cell) is not None:
        return [cell] if cell else []
    parts = cell.split(separators[0])
    return [label for part in parts for label in _labels(part, find, separators[1:])]


def _from_columns(header: Row, rows: list[Row], find: Find) -> list[set[int]]:
    """The categories of each row, where the header names labels and cells are 1 or 0."""
    first, names = header
    columns = {k: name.strip() for k, name in enumerate(names) if k and name.strip()}
    found = {k: find(name) for k, name in columns.items()}
    _refuse({name: first for k, name in columns.items() if found[k] is None})
    shown = []
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"row {number}: must have {len(names)} columns, as row {first} has "
                f"(got {len(cells)})"
            )
        values = {k: cells[k].strip().lower() for k in columns}
        for k, value in values.items():
            if value not in _VALUES:
                raise ValueError(
                    f"row {number}, {columns[k]!r}: must be 1 or 0, as row {first} names labels "
                    f"(got {cells[k]!r})"
                )
        shown.append({c for k, c in found.items() if c is not None and _VALUES[values[k]]})
    return shown


def _refuse(unknown: dict[str, int]) -> None:
    """Raise ValueError if there are unknown labels, given with their row numbers."""
    if unknown:
        listed = [f"{label!r} in row {number}" for label, number in sorted(unknown.items())]
        more = [f"{len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
        raise ValueError(
            "labels must be names or synonyms of categories "
            f"(got {', '.join([*listed[:_LISTED], *more])})"
        )
