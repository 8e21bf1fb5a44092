"""Tags in the formats of annotation tools: the tools, and what all of their files have in common.

Images are named relative to the folder that the file (or folder) of tags is in. Images that could
not be read are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import InputError, as_input_error
from prompt_tuning.label_formats.coco_images import write_coco_images
from prompt_tuning.label_formats.cvat import write_cvat
from prompt_tuning.label_formats.datumaro import write_datumaro
from prompt_tuning.label_formats.fiftyone import write_fiftyone
from prompt_tuning.label_formats.label_studio import config_file, write_label_studio
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.label_formats.yolo import write_yolo
from prompt_tuning.plain_text import as_named, plain


class Tool(NamedTuple):
    """`write`: from the target, the labels and what the tags were made with to a function that adds
    a row. `suffix`: that the target must have; a folder has none."""

    write: Callable[
        [Path, Sequence[str], dict[str, Any]], AbstractContextManager[Callable[[Row], None]]
    ]
    suffix: str


# By the names that --format takes; `evaluate --dataset` reads the same names.
TOOLS = {
    "label_studio": Tool(write_label_studio, ".json"),
    "cvat": Tool(write_cvat, ".xml"),
    "coco_json": Tool(write_coco_images, ".json"),
    "fiftyone": Tool(write_fiftyone, ""),
    "datumaro": Tool(write_datumaro, ""),
    "yolo": Tool(write_yolo, ""),
}


def check_target(out: Path, tool: str) -> None:
    """Check the name of a file or folder to write for a tool, and that none of what will be
    written exists. Raises InputError."""
    if tool not in TOOLS:
        raise InputError(f"--format: must be one of {', '.join(TOOLS)} (got {tool[:80]!r})")
    suffix = TOOLS[tool].suffix
    if out.suffix != suffix:
        wanted = f"a file ending in {suffix}" if suffix else "the name of a new folder"
        raise InputError(f"--out: {out} must be {wanted} for --format {tool}")
    for file in written_files(out, tool):
        if os.path.lexists(file):
            raise InputError(f"--out: {file} exists already; remove it, or choose another name")


def check_images_below(out: Path, images: Iterable[Path]) -> None:
    """Check that a target can name all images. Raises InputError."""
    for file in images:
        _relative(plain(str(file)), out.absolute().parent)


@contextmanager
def tool_writer(
    out: Path, tool: str, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row; it raises InputError for a row that the tool cannot hold."""
    folder = out.absolute().parent
    with TOOLS[tool].write(out, labels, made_with) as write:

        def add(row: Row) -> None:
            if "error" not in row:
                with as_input_error(f"--format {tool}: "):
                    write({**row, "file": _relative(row["file"], folder)})

        yield add


def written_files(out: Path, tool: str | None) -> list[Path]:
    """What was written, for people: `out`, and what a tool needs beside it."""
    return [out, config_file(out)] if tool == "label_studio" else [out]


def _relative(file: str, folder: Path) -> str:
    """The name of an image as seen from a folder above it. Raises InputError.

    `file` and the name are as `plain` has them; what lies where is told by the original names.
    """
    parent, name = os.path.split(as_named(file))
    if name in ("", ".", ".."):
        raise InputError(f"file must be the path of an image (got {file!r})")
    inner = _relative_folder(parent, folder)
    if inner == ".." or inner.startswith("../"):
        raise InputError(
            f"--out: must be in a folder above the images, because they are named from there "
            f"({file} is not below {folder}; a link to their folder there will do)"
        )
    return plain(name if inner == "." else os.path.join(inner, name))


@lru_cache(maxsize=1024)
def _relative_folder(parent: str, folder: Path) -> str:
    return os.path.relpath(parent or ".", folder)
