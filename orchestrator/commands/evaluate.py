"""`datafree evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.console import quieten_libraries


def evaluate(run: Path, options: dict[str, Any], against: Path | None, cache: str | None) -> None:
    """Check what is asked, then measure the run."""
    quieten_libraries()
    from orchestrator.evaluate.job import evaluate as evaluate_run

    evaluate_run(run, options, against, cache, Console())
