"""Read a label list with all of its mistakes at once, for `datafree check`."""

from __future__ import annotations

from orchestrator.config.inputs import listed_categories
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.label_findings import Finding
from prompt_tuning.label_names import name_key


def read_labels_leniently(config: RunConfig) -> tuple[CategoryList | None, list[Finding]]:
    """The labels without those that are wrong, and an error for each of these.

    None where fewer than two labels are left. Raises InputError for a file that is not a list.
    """
    problems: list[str] = []
    listed = listed_categories(config, problems)
    findings = [
        Finding("error", "not a label", "", problem, "write one English name a line")
        for problem in problems
    ]
    kept: list[Category] = []
    owner: dict[str, tuple[str, str]] = {}
    for number, raw in enumerate(listed, start=1):
        label = str(raw.get("name", ""))
        try:
            category = validate(Category, raw, f"label {number}")
        except InputError as error:
            findings.append(
                Finding("error", "not a label", label, str(error), "write one English name")
            )
            continue
        taken = [
            (word, *owner[name_key(word)])
            for word in (*category.names, *category.kinds)
            if name_key(word) in owner
        ]
        findings += [_doubled(category, *double) for double in taken]
        if not taken:
            kept.append(category)
            for word in (*category.names, *category.kinds):
                owner[name_key(word)] = category.name, word
    if len(kept) < 2:
        message = f"a list must have at least 2 labels (got {len(kept)})"
        return None, [*findings, Finding("error", "too few", "", message, "list more labels")]
    return CategoryList(categories=tuple(kept)), findings


def _doubled(category: Category, word: str, other: str, spelled: str) -> Finding:
    """`word` of this category is already a name of the label `other`, as `spelled`."""
    if word == category.name and spelled == other:
        return Finding(
            "error",
            "listed twice",
            word,
            f"is the same label as {other!r}: case, hyphens, Unicode form and plural make no "
            "difference",
            "remove one of them",
        )
    return Finding(
        "error",
        "one word for two labels",
        category.name,
        f"{word!r} stands for {other!r} too",
        "take the word away from one of them",
    )
