"""`datafree knowledge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Config, ConfigCache, DryRun, Overrides, Runs
from orchestrator.errors import InputError


def knowledge(
    config: Config,
    set_: Overrides = None,
    dry_run: DryRun = False,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            help="Show N answers of each question template for a few categories, and stop",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the open questions as OpenAI batch requests (JSONL)"),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="Take answers from a file (JSONL), and go on"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 if a question got no answer")
    ] = False,
    cache: ConfigCache = None,
    runs: Runs = None,
) -> None:
    """Ask a language model for captions of the categories and write them as Parquet."""
    from orchestrator.config.load import load_config

    loaded = load_config(config, set_ or [], cache, runs)
    if dry_run and (export or import_):
        raise InputError("--dry-run goes with neither --export nor --import")
    if preview is not None and (dry_run or export or import_ or strict):
        raise InputError("--preview goes with no other option than --set, --cache and --runs")
    if preview is not None:
        from orchestrator.runs.knowledge_preview import preview_knowledge

        preview_knowledge(loaded, Console(), preview)
        return
    from orchestrator.runs.knowledge_job import run_knowledge

    run_knowledge(loaded, Console(), dry_run, strict, import_, export)
