"""`datafree run`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from rich.console import Console


def run(
    config: Path, overrides: list[str], dry_run: bool, cache: str | None, runs: str | None
) -> None:
    """Check the config, then run it or print its plan."""
    quieten_libraries()
    from orchestrator.config.models import load_config
    from orchestrator.runs.pipeline import run as run_pipeline

    loaded = load_config(config, overrides, cache, runs)
    run_pipeline(loaded, Console(), dry_run)


def quieten_libraries() -> None:
    """Their bars and notices would hide ours; errors come through. tqdm looks once, at import."""
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    warnings.filterwarnings("ignore", module="torchvision")
