"""`datafree tag`."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import typer
from rich.console import Console

from orchestrator.console import quieten_libraries
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def tag(
    artifact: Path,
    images: list[str],
    out: Path | None,
    threshold: float | None,
    top: int | None,
    labels: str | None,
    workers: int | None,
    sheet: Path | None,
    cache: str | None,
) -> None:
    """Check what is asked, then tag; exit code 1 when no image could be."""
    if not out:
        say_if_stopped("Stopped. With --out the same command would go on from what is tagged.")
    quieten_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # of an image that is odd but can be read
    from orchestrator.tagging.job import tag_images
    from orchestrator.tagging.tags_file import SUFFIXES

    if threshold is not None and not 0 <= threshold <= 1:
        shown = "nan" if math.isnan(threshold) else threshold
        raise InputError(f"--threshold: {shown} is no score; scores go from 0 to 1")
    for option, value in (("--top", top), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option}: {value} is too few; 1 is the least")
    for option, file, suffixes in (("--out", out, SUFFIXES), ("--sheet", sheet, (".html",))):
        if file and file.suffix not in suffixes:
            raise InputError(f"{option}: {file} must end in {' or '.join(suffixes)}")
        if file and file.is_dir():
            raise InputError(f"{option}: {file} is a folder")
        if file:
            check_folder(str(file.absolute().parent), option)
    if not tag_images(
        artifact,
        images,
        cache=check_folder(cache or os.environ.get("DATAFREE_CACHE") or "cache", "--cache"),
        console=Console(stderr=True),
        threshold=threshold,
        top=top,
        labels=None if labels is None else [label.strip() for label in labels.split(",")],
        out=out,
        sheet=sheet,
        workers=workers,
    ):
        raise typer.Exit(1)
