"""`datafree convert`: the rows of a file of tags in another format, as a stream."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.console import StageProgress, counted
from orchestrator.errors import InputError, as_input_error
from orchestrator.tagging.sidecars import SidecarSettings, SidecarWriter
from orchestrator.tagging.tags_file import read_made_with, read_tags, tags_writer
from orchestrator.tagging.tool_formats import tool_writer, written_files
from prompt_tuning.categories import category_named
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.storage import replacing


def convert_tags(tags: Path, out: Path, tool: str | None, console: Console) -> None:
    """Write the rows of `tags` to `out`: as a table by its suffix, or for a tool.

    Raises:
        InputError: for a file that is not one of tags, with the row.
    """
    made_with = _made_with(tags)
    # Formats begin with the list of labels, so the rows are read twice.
    labels: dict[str, None] = {}
    images = unreadable = 0
    for row in _rows(tags):
        images += 1
        unreadable += "error" in row
        labels.update(dict.fromkeys(tag["name"] for tag in row["tags"]))
    if tool:
        with tool_writer(out, tool, list(labels), made_with) as write:
            for row in _rows(tags):
                write(row)
        left_out = f", {unreadable:,} left out because they could not be read"
        console.print(f"{counted(images - unreadable, 'image')}{left_out if unreadable else ''}")
    else:
        with (
            replacing(out) as temporary,
            tags_writer(temporary, made_with, out.suffix) as write_table,
        ):
            for row in _rows(tags):
                write_table(row)
        console.print(counted(images, "image"))
    for file in written_files(out, tool):
        console.print(str(file), soft_wrap=True, highlight=False, markup=False)


def tags_to_sidecars(
    tags: Path, artifact: Path | None, settings: SidecarSettings, console: Console
) -> bool:
    """Write the rows of `tags` into the images' sidecars, and return whether all could be written.

    `artifact`: the groups of its labels become their paths in the hierarchy; without it they get
    none.

    Raises:
        InputError: for a file that is not one of tags, with the row, or a bad artifact.
    """
    made_with = _made_with(tags)
    tree: dict[str, dict[str, list[str]]] = {}
    if artifact:
        from prompt_tuning.tagging.artifact import Artifact  # which imports PyTorch

        with as_input_error():
            tree = Artifact.load(artifact).tree
    total = sum(1 for _ in _rows(tags))  # nothing is written if a row is wrong
    writer = SidecarWriter(str(made_with.get("artifact", "")), tree, settings, console)
    with StageProgress(console, "sidecars", total) as progress:
        for row in _rows(tags):
            writer.add(row)
            progress.advance(1)
    for line in writer.summary():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return not writer.failed


def _made_with(tags: Path) -> dict[str, Any]:
    """What a file of tags was made with. Raises InputError for any other file."""
    made_with = read_made_with(tags)
    if made_with is None:
        raise InputError(f"{tags}: must be a file of tags that `datafree tag --out` wrote")
    return made_with


def _rows(tags: Path) -> Iterator[Row]:
    """The rows of a file of tags. Raises InputError with the row that is wrong."""
    done = 0
    try:
        for row in read_tags(tags):
            row["file"].encode()
            for tag in row["tags"]:
                _check_label(tag["name"])
                if not 0 <= tag["score"] <= 1:
                    raise ValueError(f"score must be from 0 to 1 (got {tag['score']!r})")
            yield row
            done += 1
    except KeyError as error:
        raise InputError(f"{tags}: row {done + 1}: {error} is missing") from None
    except RecursionError:
        raise InputError(f"{tags}: row {done + 1}: nested too deeply") from None
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{tags}: row {done + 1}: {line}") from None


@lru_cache(maxsize=65536)
def _check_label(name: str) -> None:
    category_named(name)
