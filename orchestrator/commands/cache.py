"""`datafree cache`."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Cache
from orchestrator.paths import cache_folder, check_folder


def cache(
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove results that no run refers to")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --remove: only show what would go")
    ] = False,
    cache: Cache = None,
    runs: Annotated[
        str | None,
        typer.Option(
            help="Folder of all runs that use the cache (default: $DATAFREE_RUNS or runs)"
        ),
    ] = None,
) -> None:
    """List the results that stages keep, and the runs that refer to them."""
    from orchestrator.runs.cache import show_cache

    runs_folder = check_folder(runs or os.environ.get("DATAFREE_RUNS") or "runs", "--runs")
    show_cache(cache_folder(cache), runs_folder, Console(), remove, dry_run)
