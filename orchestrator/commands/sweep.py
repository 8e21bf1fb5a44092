"""`datafree sweep`."""

from __future__ import annotations

from rich.console import Console

from orchestrator.commands.options import Config, ConfigCache, DryRun, Overrides, Runs


def sweep(
    config: Config,
    set_: Overrides = None,
    dry_run: DryRun = False,
    cache: ConfigCache = None,
    runs: Runs = None,
) -> None:
    """Tune many variants of a config, compare them and report the best."""
    from orchestrator.config.load import read_config
    from orchestrator.sweep.job import sweep as run_sweep

    run_sweep(read_config(config, set_ or [], cache, runs), config, Console(), dry_run)
