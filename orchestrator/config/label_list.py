"""Read label lists from text files, and print their first labels."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from orchestrator.config.yaml import read_bytes
from orchestrator.errors import InputError, as_input_error
from prompt_tuning.categories import CategoryList, category_named
from prompt_tuning.label_names import name_key
from prompt_tuning.plain_text import plain_lines

_COMMENT = re.compile(r"(^|\s)#(\s.*|$)")
_BULLET = re.compile(r"[-*•‣◦▪·–—]\s*")
_NUMBER = re.compile(r"\(?\d+[.):]\s+|\d+[.)](?=[^\W\d_])")
_LINE_NUMBER = re.compile(r"\(?(\d+)[.):]?\s+(?=\S)")
_MIN_NUMBERED_LINES = 3
_HEADERS = frozenset(
    ("label", "name", "category", "class", "tag", "label name", "category name", "class name")
)
_LOOKS_LIKE_A_HEADER = "looks like a header; delete the line, or list a label of this name in YAML"
_LABELS_SHOWN = 8


def read_label_list(path: Path, problems: list[str] | None = None) -> list[str]:
    """The labels of a text file with one label per line.

    Drops comments (`# …`), bullets (`- dog`), numbers (`1. dog`), quotes around a label and
    separators after it. Raises InputError for a header, and for a line with several names, because
    these could be labels or synonyms; with `problems`, such lines are left out and said there.
    """
    with as_input_error():
        lines = plain_lines(read_bytes(path), str(path))
    kept = [(row, _COMMENT.sub("", line).strip()) for row, line in enumerate(lines, start=1)]
    entries = _without_line_numbers([(row, text) for row, text in kept if text], path)
    labels = []
    for index, (row, text) in enumerate(entries):
        try:
            labels.append(_label(text, f"{path}, line {row}", first=index == 0))
        except InputError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return labels


def _without_line_numbers(entries: list[tuple[int, str]], path: Path) -> list[tuple[int, str]]:
    """Remove line numbers (1, 2, 3 …); any other number may belong to a label.

    Raises InputError when only the first line has no number.
    """
    numbers = [int(match[1]) if (match := _LINE_NUMBER.match(text)) else -1 for _, text in entries]
    if _are_line_numbers(numbers):
        return [(row, _LINE_NUMBER.sub("", text, count=1)) for row, text in entries]
    if numbers[:1] == [-1] and _are_line_numbers(numbers[1:]):
        row, text = entries[0]
        raise InputError(f"{path}, line {row}: {text!r} {_LOOKS_LIKE_A_HEADER}")
    return entries


def _are_line_numbers(numbers: list[int]) -> bool:
    return len(numbers) >= _MIN_NUMBERED_LINES and any(
        numbers == list(range(first, first + len(numbers))) for first in (0, 1)
    )


def _label(text: str, where: str, first: bool) -> str:
    for mark in (_BULLET, _NUMBER):
        if match := mark.match(text):
            text = text[match.end() :]
    text = text.rstrip(",;\t ")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    text = re.sub("[ \u00a0]+", " ", text).strip()
    if first and name_key(text.rstrip(":")) in _HEADERS:
        raise InputError(f"{where}: {text!r} {_LOOKS_LIKE_A_HEADER}")
    if text.startswith("#"):
        raise InputError(
            f"{where}: a comment must have a space after # (got {text!r}); list a label of this "
            "name in YAML"
        )
    if not re.search(r"\w", text):
        raise InputError(f"{where}: must be a label (got {text!r})")
    with as_input_error(f"{where}: "):
        return category_named(text).name


def show_labels(categories: CategoryList, console: Console) -> None:
    """Print how many labels there are, and the first of them."""
    names = categories.names
    first = ", ".join(names[:_LABELS_SHOWN]) + (", …" if len(names) > _LABELS_SHOWN else "")
    console.print(f"{len(names):,} labels: {first}", soft_wrap=True, highlight=False, markup=False)
