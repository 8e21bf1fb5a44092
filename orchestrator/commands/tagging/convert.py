"""`datafree convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import DrySidecars, Sidecars, TagFormat
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def convert(
    tags: Annotated[Path, typer.Argument(help="File of tags: .jsonl, .csv or .parquet")],
    out: Annotated[
        Path | None, typer.Option(help="Output: .jsonl, .csv, .parquet, or as --format has it")
    ] = None,
    tool: TagFormat = None,
    sidecars: Sidecars = None,
    artifact: Annotated[
        Path | None, typer.Option(help="With xmp: take the groups of labels from this artifact")
    ] = None,
    dry_run: DrySidecars = False,
) -> None:
    """Write a file of tags in another format; start it in the folder where `tag` ran."""
    say_if_stopped("Stopped. The same command starts again.")
    from orchestrator.tagging.convert import convert_tags, tags_to_sidecars
    from orchestrator.tagging.sidecars import sidecar_settings
    from orchestrator.tagging.tags_file import SUFFIXES
    from orchestrator.tagging.tool_formats import check_target

    settings = sidecar_settings(tool, sidecars, dry_run, out)
    if settings:
        if not tags_to_sidecars(tags, artifact, settings, Console(stderr=True)):
            raise typer.Exit(1)
        return
    if artifact:
        raise InputError("--artifact: only goes with --format xmp")
    if not out:
        raise InputError("--out: is missing; only --format xmp does without")
    if tool:
        check_target(out, tool)
    elif out.suffix not in SUFFIXES:
        raise InputError(
            f"--out: {out} must end in {' or '.join(SUFFIXES)}, or --format name a tool"
        )
    elif out.exists():
        raise InputError(f"--out: {out} exists already; remove it, or choose another name")
    check_folder(str(out.absolute().parent), "--out")
    convert_tags(tags, out, tool, Console(stderr=True))
