"""`datafree doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Cache


def doctor(
    cache: Cache = None,
    verify_clip: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET_ROOT",
            help="Instead, compare CLIP's zero-shot mAP on VOC 2007 with the published figure",
        ),
    ] = None,
) -> None:
    """Check that this machine has what the quickstart needs: memory, packages, models, cache."""
    folder = Path(cache or os.environ.get("DATAFREE_CACHE") or "cache").expanduser().resolve()
    if verify_clip:
        from orchestrator.evaluate.clip_check import RN50
        from orchestrator.evaluate.clip_check import verify_clip as verify

        passed = verify(RN50, verify_clip, str(folder), Console())
    else:
        from orchestrator.cluster.machine import report_machine

        passed = report_machine(folder)
    if not passed:
        raise typer.Exit(1)
