"""`datafree run`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from orchestrator.console import quieten_libraries


def run(
    config: Path, overrides: list[str], dry_run: bool, cache: str | None, runs: str | None
) -> None:
    """Check the config, then run it or print its plan."""
    quieten_libraries()
    from orchestrator.config.models import load_config
    from orchestrator.runs.pipeline import run as run_pipeline

    loaded = load_config(config, overrides, cache, runs)
    run_pipeline(loaded, Console(), dry_run)
