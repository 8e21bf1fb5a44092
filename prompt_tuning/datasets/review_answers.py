"""The answers of a person who reviewed tags: `review.csv` next to the images.

Each row is `file,label,answer`: an image by its path below the folder, a label by its name, and
whether the image shows it: yes, no or unknown, or nothing if the answers before were undone. Later
rows win, so an answer is changed by adding a row, and each row is on disk before anyone is told
that it was saved. A writer that is killed may leave a torn last row: readers skip it, and the next
writer cuts it off.
"""

from __future__ import annotations

import codecs
import csv
import fcntl
import io
import os
import re
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages, image_file
from prompt_tuning.label_formats.tag_row import as_named

FILE = "review.csv"

Answer = Literal["yes", "no", "unknown"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)

_HEADER = "file,label,answer"
_LINE_END = re.compile(rb"\r\n|\r|\n")  # also Excel's "CSV (Macintosh)"


def is_writable_name(name: str) -> bool:
    """Whether a file's name fits into a row: UTF-8 without control characters."""
    return name.isprintable() or not any(
        ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or "\ud800" <= c <= "\udfff" or c in "\u2028\u2029"
        for c in name
    )


def read_answers(folder: Path) -> dict[tuple[str, str], Answer]:
    """The answer to each file and label, in the order of the first answers; none without a file.

    Raises:
        ValueError: with the row, for one that is not an answer or whose file is not below the
            folder, or if the file is not UTF-8.
    """
    file = folder / FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}
    last = _LINE_END.split(content)[-1]
    if _is_torn(last, is_first=len(last) == len(content)):
        content = content[: len(content) - len(last)]
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    answers: dict[tuple[str, str], Answer] = {}
    for number, line in enumerate(_LINE_END.split(content.removeprefix(codecs.BOM_UTF8)), start=1):
        try:
            row = _row(line.decode(), is_first=number == 1)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{file}: row {number}: {error}") from None
        if row is None:
            continue
        name, label, answer = row
        if answer is None:
            answers.pop((name, label), None)
        else:
            answers[name, label] = answer
    return answers


def append_answer(folder: Path, name: str, label: str, answer: Answer | None) -> None:
    """Add a row, which is on disk when this returns; the file is created if need be.

    `answer`: None undoes earlier rows.

    Raises:
        ValueError: for a name or label that cannot stand in a row.
        OSError: if it cannot be saved; the file is then as it was.
    """
    for text in (name, label):
        if not is_writable_name(text):
            raise ValueError(f"{text!r} has control characters, or is not UTF-8")
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow([name, label, answer])
    # Opened for each row: an editor may have replaced the file.
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = os.fstat(descriptor).st_size
        size, start = _end_of_rows(descriptor, before)
        if size < before:
            os.ftruncate(descriptor, size)
        if size == 0:
            start = f"{_HEADER}\n"
        try:
            _write(descriptor, (start + row.getvalue()).encode())
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if size == 0:
        _sync_folder(folder)


def with_answers(images: LabelledImages, categories: CategoryList, folder: Path) -> LabelledImages:
    """Labelled images with the answers of `folder` over their labels, and images with only answers.

    Labels of an image that has only answers are ignored where they have none, and so are labels
    that were answered with unknown. Images that are gone are among the files, so that whoever reads
    them says so. Labels that the list does not have are among `other_classes`.

    Raises:
        ValueError: as `read_answers`.
    """
    places = {file.resolve(): i for i, file in enumerate(images.files)}
    files, entries, others = list(images.files), [], set(images.other_classes)
    for (name, label), answer in read_answers(folder).items():
        category = categories.find(label)
        file = image_file(folder, name)
        if category is None:
            others.add(label)
        else:
            place = places.setdefault(file.resolve(), len(files))
            if place == len(files):
                files.append(file)
            entries.append((place, category, answer))
    labels = np.zeros((len(files), len(categories)), dtype=bool)
    ignored = np.ones_like(labels)
    before = len(images.files)
    labels[:before] = images.labels
    ignored[:before] = False if images.ignored is None else images.ignored
    for place, category, answer in entries:
        labels[place, category] = answer == "yes"
        ignored[place, category] = answer == "unknown"
    return LabelledImages(
        tuple(files), labels, ignored if ignored.any() else None, tuple(sorted(others))
    )


def _row(line: str, is_first: bool) -> tuple[str, str, Answer | None] | None:
    """The answer in a line, or None for an empty line or a header."""
    cells = _cells(line)
    if not any(cell.strip() for cell in cells) or (is_first and line.strip() == _HEADER):
        return None
    if len(cells) != 3:
        raise ValueError(f"must be file,label,answer (got {line!r})")
    name, label, said = cells
    if _leaves_folder(name):
        raise ValueError(f"file must be a path below this folder (got {name!r})")
    answer = said.strip().lower()
    if answer and answer not in ANSWERS:
        raise ValueError(f"answer must be yes, no, unknown or empty (got {said!r})")
    return name, label, answer or None


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _leaves_folder(name: str) -> bool:
    """Whether any spelling that `image_file` tries may be outside of the folder."""
    spellings = (name, as_named(name), name.replace("\\", "/"))
    paths = [PurePosixPath(spelling.strip()) for spelling in spellings]
    return any(path.is_absolute() or ".." in path.parts for path in paths)


def _is_torn(last: bytes, is_first: bool) -> bool:
    """Whether a writer that was killed may have left this: the beginning of a header or row.

    All else is from an editor that leaves out the last line's end, and is a row, right or wrong.
    """
    try:
        # An incomplete character at the end is no error.
        text = codecs.getincrementaldecoder("utf-8")().decode(last)
        cells = _cells(text)
    except (UnicodeDecodeError, csv.Error):
        return False
    if is_first:
        return _HEADER.startswith(text)
    if len(cells) == 3:
        is_whole = cells[2] in ANSWERS
        return not is_whole and any(answer.startswith(cells[2]) for answer in ANSWERS)
    return len(cells) < 3


def _end_of_rows(descriptor: int, size: int) -> tuple[int, str]:
    """Where the whole rows end, and what must come before the next one."""
    step = 4096
    tail = b""
    while len(tail) < size and not _LINE_END.search(tail):
        step = min(2 * step, size)
        tail = os.pread(descriptor, step, size - step)
    last = _LINE_END.split(tail)[-1]
    if not last:
        return size, ""
    if _is_torn(last, is_first=len(last) == size):
        return size - len(last), ""
    return size, "\n"


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
