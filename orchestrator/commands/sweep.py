"""`datafree sweep`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from orchestrator.console import quieten_libraries


def sweep(
    config: Path, overrides: list[str], dry_run: bool, cache: str | None, runs: str | None
) -> None:
    """Check the config with its sweep part, then run all its points or print the plan."""
    quieten_libraries()
    from orchestrator.config.models import read_config
    from orchestrator.sweep.job import sweep as run_sweep

    raw = read_config(config, overrides, cache, runs)
    run_sweep(raw, config, Console(), dry_run)
