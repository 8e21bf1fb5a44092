"""`datafree tag`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Artifact, Cache, DrySidecars, Sidecars, TagFormat
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import cache_folder, check_folder


def tag(
    artifact: Artifact,
    images: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Images, folders or quoted patterns")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output: .jsonl, .csv, .parquet, or as --format has it (default: print)"),
    ] = None,
    tool: TagFormat = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Lowest score of a tag, 0 to 1 (default: one threshold per label)"),
    ] = None,
    top: Annotated[int | None, typer.Option(help="Most tags per image")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Tag with these labels instead, without tuning"),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of parallel workers on Ray")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a page of images and tags (.html)")
    ] = None,
    sidecars: Sidecars = None,
    dry_run: DrySidecars = False,
    cache: Cache = None,
) -> None:
    """Tag images, folders or patterns; an interrupted command with --out can be resumed."""
    if tool == "xmp":
        say_if_stopped("Stopped. The same command goes on; finished sidecars stay as they are.")
    elif not out:
        say_if_stopped("Stopped. With --out, the same command resumes from the images tagged.")
    warnings.filterwarnings("ignore", module="PIL")  # odd but readable images
    from orchestrator.tagging.job import tag_images
    from orchestrator.tagging.sidecars import sidecar_settings
    from orchestrator.tagging.tags_file import SUFFIXES
    from orchestrator.tagging.tool_formats import check_target

    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold: must be between 0 and 1 (got {threshold})")
    for option, value in (("--top", top), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option}: must be at least 1 (got {value})")
    in_sidecars = sidecar_settings(tool, sidecars, dry_run, out)
    if tool and not in_sidecars:
        if not out:
            raise InputError(f"--out: is missing, for --format {tool[:80]}")
        check_target(out, tool)
    for option, file, suffixes in (("--out", out, SUFFIXES), ("--sheet", sheet, (".html",))):
        if file and file.suffix not in suffixes and not (tool and file is out):
            raise InputError(f"{option}: {file} must end in {' or '.join(suffixes)}")
        if file and file.is_dir():
            raise InputError(f"{option}: {file} is a folder")
        if file:
            check_folder(str(file.absolute().parent), option)
    if not tag_images(
        artifact,
        images,
        cache=cache_folder(cache),
        console=Console(stderr=True),
        threshold=threshold,
        top=top,
        labels=None if labels is None else [label.strip() for label in labels.split(",")],
        out=out,
        tool=tool,
        sheet=sheet,
        workers=workers,
        sidecars=in_sidecars,
    ):
        raise typer.Exit(1)
