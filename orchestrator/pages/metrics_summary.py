"""Rows and sentences from a metrics file, for the pages, the model card and the console."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.pages.html import fixed, quantity
from prompt_tuning.knowledge.caption_coverage import named

METHODS = ("zero_shot", "templates", "synonym_average", "caption_average", "tuned")
_FEW_HELD_OUT = 50


class ClassRow(NamedTuple):
    """Average precision of one class; None where no image shows the class."""

    name: str
    tuned: float | None
    untuned: float | None

    @property
    def difference(self) -> float | None:
        """How far tuned is above the best baseline."""
        if self.tuned is None or self.untuned is None:
            return None
        return self.tuned - self.untuned


def class_rows(ap: dict[str, dict[str, float | None]], untuned: str | None) -> list[ClassRow]:
    """Classes with their average precision, weakest first, those without positives last."""
    other = ap.get(untuned, {}) if untuned else {}
    rows = [ClassRow(name, score, other.get(name)) for name, score in ap["tuned"].items()]
    return sorted(rows, key=lambda row: (row.tuned is None, row.tuned or 0.0, row.name))


def best_baseline(scores: dict[str, float]) -> str | None:
    """The best of the untuned methods."""
    return max(
        (method for method in scores if method != "tuned"), key=scores.__getitem__, default=None
    )


def in_order(scores: dict[str, float]) -> list[str]:
    """The methods in the order of `METHODS`, unknown ones last."""
    return sorted(scores, key=lambda method: [*METHODS, method].index(method))


def fused_scores(metrics: dict[str, Any]) -> dict[str, float]:
    """The mAP (0-100) of each method's fused scores."""
    return {method: row["fused"] for method, row in metrics.get("map", {}).items()}


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def evaluated_on(metrics: dict[str, Any] | None) -> str:
    """What the figures were measured on, in words."""
    if metrics is None:
        return "held-out captions (there were no images)"
    dataset = metrics["dataset"]
    noun = "composed scene" if dataset == "scenes" else "image"
    left_out = metrics["protocol"].get("images_left_out_as_they_selected", 0)
    return (
        quantity(metrics["images"], noun)
        + ("" if dataset == "scenes" else f" of {dataset}")
        + (f" (without the {left_out:,} used for selection)" if left_out else "")
    )


def caption_notes(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know about the captions before trusting the run's figures and tags."""
    captions = metrics.get("captions")
    if captions is None:
        return []
    notes = []
    if missing := captions["labels_without_training"]:
        notes.append(
            f"No training caption shows {len(missing)} of {len(metrics['positives'])} labels: "
            f"{named(missing)}. Tuning sees them as wrong answers only; do not rely on their tags."
        )
    if (held_out := captions["held_out"]) < _FEW_HELD_OUT:
        notes.append(
            f"Only {quantity(held_out, 'caption')} {'was' if held_out == 1 else 'were'} held out "
            "to choose the checkpoint, to calibrate scores and to measure the text mAP: too few to "
            "rely on."
        )
    if unseen := captions["labels_without_held_out"]:
        notes.append(
            f"No held-out caption shows {named(unseen)}: the text mAP leaves these labels out, and "
            "their thresholds are the one that all labels share."
        )
    return notes


def local_caveat(metrics: dict[str, Any]) -> str:
    """A sentence where local scores alone beat the fused scores that the page quotes, else ""."""
    maps = metrics.get("map", {})
    local = {method: row["local"] for method, row in maps.items()}
    baseline = best_baseline(local)
    if baseline is None or max(local.values()) <= max(fused_scores(metrics).values()):
        return ""
    return (
        f"Local scores alone are better here than the fused ones: {baseline} reaches "
        f"{fixed(local[baseline])}, tuned {fixed(local['tuned'])}. This page quotes fused scores, "
        "because that was decided before measuring and not on these images."
    )
