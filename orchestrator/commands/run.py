"""`datafree run`."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console


def run(
    config: Path, overrides: list[str], dry_run: bool, cache: str | None, runs: str | None
) -> None:
    """Check the config, then run it or print its plan."""
    from orchestrator.config import load_config
    from orchestrator.pipeline import run as run_pipeline

    loaded = load_config(config, overrides, cache, runs)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_pipeline(loaded, Console(), dry_run)
