"""Photos of one's own in a folder, with a table of their labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages, category_indices

LAYOUT = "a folder with labels.csv: rows of path,label;label for each photo"


def read_folder(folder: Path, categories: CategoryList) -> LabelledImages:
    """One's own photos: `labels.csv` in their folder, rows `path,label;label`, no header.

    A label is a category's name or a synonym of it.

    Raises:
        ValueError: naming the row, for a missing file or labels that are no category of the list,
            or naming the table when it is missing, empty, not UTF-8 or no CSV.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise ValueError(f"{table} is missing: rows of path,label;label for each photo")
    index = category_indices(categories)
    files: list[Path] = []
    shown: list[set[str]] = []
    foreign: dict[str, int] = {}
    try:
        rows = list(csv.reader(table.read_text("utf-8-sig").splitlines()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: no CSV in UTF-8 ({error})") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"{table}, row {number}: must be path,label;label")
        if not (folder / row[0]).is_file():
            raise ValueError(f"{table}, row {number}: {row[0]} is not there")
        files.append(folder / row[0])
        shown.append({label.strip() for label in row[1].split(";") if label.strip()})
        for label in shown[-1] - set(index):
            foreign.setdefault(label, number)
    if foreign:
        listed = ", ".join(f"{label} (row {row})" for label, row in sorted(foreign.items()))
        raise ValueError(f"{table}: no category: {listed}")
    if not files:
        raise ValueError(f"{table} lists no photo")
    labels = np.zeros((len(files), len(categories)), dtype=bool)
    for i, of_image in enumerate(shown):
        labels[i, [index[label] for label in of_image]] = True
    return LabelledImages(tuple(files), labels)
