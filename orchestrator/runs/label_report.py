"""`check`: print what may go wrong with a list of labels, before an hour is spent on it."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.config.lenient_labels import read_labels_leniently
from orchestrator.config.models import RunConfig
from orchestrator.console import status
from orchestrator.errors import InputError
from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.label_findings import (
    Finding,
    find_in_names,
    find_several_senses,
)

_FINDINGS_SHOWN = 5


def check_labels(config: RunConfig, console: Console, as_json: bool) -> bool:
    """Print all findings; return whether a run would accept the labels. Raises InputError."""
    categories, findings = read_labels_leniently(config)
    if categories is not None:
        with status(Console(stderr=True), f"reading {len(categories):,} labels …"):
            findings += find_in_names(categories)
            findings += _too_long(config, categories)
        with status(Console(stderr=True), "asking the text tower …"):
            findings += _with_text_tower(config, categories)
    findings.sort(key=lambda finding: finding.level)
    count = 0 if categories is None else len(categories)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        console.print_json(json.dumps({"labels": count, "findings": rows}))
    else:
        _print(findings, count, console)
    return not any(finding.level == "error" for finding in findings)


def warn_of_labels(categories: CategoryList, console: Console) -> None:
    """Print the first findings that need no text tower, where a run begins."""
    findings = [*find_in_names(categories, dropped=False), *find_several_senses(categories)]
    for finding in findings[:_FINDINGS_SHOWN]:
        text = f"warning: label {finding.label!r} {finding.message}; {finding.advice}"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    if len(findings) > _FINDINGS_SHOWN:
        more = f"{len(findings) - _FINDINGS_SHOWN} more findings: datafree check CONFIG"
        console.print(more, style="yellow", markup=False)


def _too_long(config: RunConfig, categories: CategoryList) -> list[Finding]:
    """Names that leave no room for the context tokens in the text tower."""
    from prompt_tuning.backbones import backbone_class  # heavy

    backbone, tokens = backbone_class(config.vlm), config.prompts.context_tokens

    def problem(*names: str) -> str | None:
        try:
            backbone.check_prompt_length(config.vlm, tokens, list(names))
        except ValueError as error:
            return str(error)
        return None

    if not problem(*categories.names):
        return []
    if message := problem("a"):
        raise InputError(message)  # whatever the names
    return [
        Finding("error", "too long", name, message, "shorten the name")
        for name in categories.names
        if (message := problem(name))
    ]


def _with_text_tower(config: RunConfig, categories: CategoryList) -> list[Finding]:
    from prompt_tuning.backbones import load_vlm  # heavy
    from prompt_tuning.knowledge.label_features import find_with_text_tower, unit_features

    try:
        vlm = load_vlm(config.vlm, cache=Path(config.paths.cache))
    except ValueError as error:
        unasked = Finding("warning", "no text tower", "", str(error), "check again where it is")
        return [unasked, *find_several_senses(categories)]
    return find_with_text_tower(categories, unit_features(vlm.encode_text))


def _print(findings: list[Finding], count: int, console: Console) -> None:
    if findings:
        table = Table("", "label", "finding", "what to write")
        for level, _, label, message, advice in findings:
            table.add_row(level, Text(label), Text(message), Text(advice))
        console.print(table)
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    console.print(f"{count:,} labels: {errors} errors, {warnings} warnings", highlight=False)
