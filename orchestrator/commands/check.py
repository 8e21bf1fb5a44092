"""`datafree check`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Config, ConfigCache, Overrides


def check(
    config: Config,
    set_: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
    cache: ConfigCache = None,
) -> None:
    """Examine the label list of a config: doubles, several senses, kinds of other labels, …"""
    from orchestrator.config.load import load_config
    from orchestrator.runs.label_report import check_labels

    loaded = load_config(config, set_ or [], cache, None)
    if not check_labels(loaded, Console(), json):
        raise typer.Exit(2)
