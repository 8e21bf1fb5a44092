"""`datafree convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import TagFormat
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def convert(
    tags: Annotated[Path, typer.Argument(help="File of tags: .jsonl, .csv or .parquet")],
    out: Annotated[
        Path, typer.Option(help="Output: .jsonl, .csv, .parquet, or as --format has it")
    ],
    tool: TagFormat = None,
) -> None:
    """Write a file of tags in another format; start it in the folder where `tag` ran."""
    say_if_stopped("Stopped. The same command starts again.")
    from orchestrator.tagging.convert import convert_tags
    from orchestrator.tagging.tags_file import SUFFIXES
    from orchestrator.tagging.tool_formats import check_target

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
