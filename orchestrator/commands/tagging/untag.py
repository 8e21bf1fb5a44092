"""`datafree untag`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import DryRun
from orchestrator.interruption import say_if_stopped


def untag(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Images, sidecars, folders or patterns")
    ],
    dry_run: DryRun = False,
) -> None:
    """Take the tags that `tag --format xmp` wrote out of XMP sidecars again."""
    say_if_stopped("Stopped. The same command goes on.")
    from orchestrator.tagging.sidecars import untag_images

    if not untag_images(paths, dry_run, Console(stderr=True)):
        raise typer.Exit(1)
