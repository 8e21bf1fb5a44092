"""`datafree explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Artifact, Cache
from orchestrator.paths import cache_folder


def explain(
    artifact: Artifact,
    label: Annotated[str, typer.Argument(help="A label of the artifact")],
    image: Annotated[
        Path | None, typer.Option(help="Instead: the captions that speak for the label in an image")
    ] = None,
    cache: Cache = None,
) -> None:
    """Show the captions that moved a label's class feature most."""
    from orchestrator.runs.explanations import explain as show

    show(artifact, label, image, cache_folder(cache), Console())
