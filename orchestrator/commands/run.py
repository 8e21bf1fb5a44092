"""`datafree run`."""

from __future__ import annotations

from rich.console import Console

from orchestrator.commands.options import Config, ConfigCache, DryRun, Overrides, Runs


def run(
    config: Config,
    set_: Overrides = None,
    dry_run: DryRun = False,
    cache: ConfigCache = None,
    runs: Runs = None,
) -> None:
    """Tune prompts for a list of labels and report how well they recognise images."""
    from orchestrator.config.load import load_config
    from orchestrator.runs.pipeline import run as run_pipeline

    run_pipeline(load_config(config, set_ or [], cache, runs), Console(), dry_run)
