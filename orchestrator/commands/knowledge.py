"""`datafree knowledge`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Config, ConfigCache, DryRun, Overrides, Runs


def knowledge(
    config: Config,
    set_: Overrides = None,
    dry_run: DryRun = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 if a question got no answer")
    ] = False,
    cache: ConfigCache = None,
    runs: Runs = None,
) -> None:
    """Ask a language model for captions of the categories and write them as Parquet."""
    from orchestrator.config.load import load_config
    from orchestrator.runs.knowledge_job import run_knowledge

    run_knowledge(load_config(config, set_ or [], cache, runs), Console(), dry_run, strict)
