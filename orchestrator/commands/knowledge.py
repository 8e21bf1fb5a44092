"""`datafree knowledge`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from orchestrator.console import quieten_libraries


def knowledge(
    config: Path,
    overrides: list[str],
    dry_run: bool,
    strict: bool,
    cache: str | None,
    runs: str | None,
) -> None:
    """Check the config, then ask the language model or print the plan."""
    quieten_libraries()
    from orchestrator.config.models import load_config
    from orchestrator.runs.knowledge_job import run_knowledge

    loaded = load_config(config, overrides, cache, runs)
    run_knowledge(loaded, Console(), dry_run, strict)
