"""The evaluation page: one self-contained HTML file about one run on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.pages.run_page import (
    METHODS,
    ClassRow,
    best_baseline,
    between,
    class_rows,
    data_uri,
    evaluated_on,
    fixed,
    local_caveat,
    page_template,
    signed,
)

_CURVES_PER_KIND = 12
_CHANGES_SHOWN = 10
# The square in which a precision-recall curve is drawn, in SVG units.
CURVE_SIDE = 100

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mistake:
    """An image (a JPEG) with a high score for a class that it does not show."""

    image: bytes
    name: str
    score: float
    true: list[str]

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return data_uri(self.image)


@dataclass(frozen=True)
class EvaluationData:
    """All that the page shows; `metrics` is the metrics file.

    `curves`: of each class that has positives, (recall, precision) in [0, 1] of the artifact's
    prompts and of the best baseline. `mistakes`: highest score first.
    """

    run: str
    vlm: str
    embedded: bool
    metrics: dict[str, Any]
    curves: Mapping[str, tuple[Points, Points]]
    mistakes: list[Mistake]


class CurveChart(NamedTuple):
    """Precision over recall of one class: two polylines in a square of `CURVE_SIDE`."""

    row: ClassRow
    tuned: str
    untuned: str


def lead(metrics: dict[str, Any]) -> str:
    """What tuning gained on these images, in a sentence that says where this may be chance."""
    fused = {method: row["fused"] for method, row in metrics["map"].items()}
    other = best_baseline(fused)
    assert other is not None
    ends = metrics["ci"].get(f"tuned - {other}")
    seeds = len(metrics["map_by_seed"]["tuned"]["fused"])
    mean = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    gap = fused["tuned"] - fused[other]
    told = (
        f"On {evaluated_on(metrics)}, the prompts tuned on text alone reach "
        f"{fixed(fused['tuned'])} mAP{mean}, and the best baseline ({other}) "
        f"{fixed(fused[other])}: a difference of {signed(gap)}"
    )
    if ends is None:
        return f"{told}."
    told += f" (95 % interval {between(ends, signed)})"
    low, high = ends
    if low > 0:
        return f"{told}."
    if high < 0:
        return f"{told}. Tuning did harm here."
    return f"{told}. The interval includes zero, so this may be chance."


def against_line(against: dict[str, Any]) -> str:
    """How the run stands against another one, in a sentence."""
    difference = against["difference"]
    ends = (difference["low"], difference["high"])
    return (
        f"Against {against['run']}, over the {against['classes']} classes with positives that "
        f"both have: {fixed(against['map']['this'])} and {fixed(against['map']['other'])} mAP "
        f"(tuned, fused), a difference of {signed(difference['mean'])}"
        + ("." if ends[0] is None else f" (95 % interval {between(ends, signed)}).")
    )


def changes(
    ap: dict[str, dict[str, float | None]],
) -> tuple[list[ClassRow], list[ClassRow]]:
    """The classes that gained most over zero-shot, and those that lost most, ten each at most."""
    compared = [
        (row.difference, row)
        for row in class_rows(ap, "zero_shot")
        if row.difference is not None and row.difference != 0
    ]
    gained = sorted((pair for pair in compared if pair[0] > 0), reverse=True)
    lost = sorted(pair for pair in compared if pair[0] < 0)
    return (
        [row for _, row in gained[:_CHANGES_SHOWN]],
        [row for _, row in lost[:_CHANGES_SHOWN]],
    )


def curve_charts(
    rows: list[ClassRow], curves: Mapping[str, tuple[Points, Points]]
) -> tuple[list[CurveChart], list[CurveChart], list[CurveChart]]:
    """The charts of the weakest classes, of the most improved others, and of the rest."""
    charts = [
        CurveChart(row, *(_polyline(points) for points in curves[row.name]))
        for row in rows
        if row.name in curves
    ]
    weakest, others = charts[:_CURVES_PER_KIND], charts[_CURVES_PER_KIND:]
    improved = sorted(
        (chart for chart in others if (chart.row.difference or 0.0) > 0),
        key=lambda chart: -(chart.row.difference or 0.0),
    )[:_CURVES_PER_KIND]
    return weakest, improved, [chart for chart in others if chart not in improved]


def _polyline(points: Points) -> str:
    """From recall 0 on, so that the curve of a single positive is seen too."""
    return " ".join(
        f"{CURVE_SIDE * recall:.1f},{CURVE_SIDE * (1 - precision):.1f}"
        for recall, precision in ((0.0, points[0][1]), *points)
    )


def render_evaluation(data: EvaluationData) -> str:
    """The page as one HTML file."""
    metrics = data.metrics
    fused = {method: row["fused"] for method, row in metrics["map"].items()}
    untuned = best_baseline(fused)
    rows = class_rows(metrics["ap"], untuned)
    weakest, improved, rest = curve_charts(rows, data.curves)
    gained, lost = changes(metrics["ap"])
    against = metrics.get("against")
    return page_template("evaluation.html.j2").render(
        data=data,
        metrics=metrics,
        fused=fused,
        methods=sorted(fused, key=lambda method: [*METHODS, method].index(method)),
        untuned=untuned,
        summary=lead(metrics),
        against=against_line(against) if against else "",
        caveat=local_caveat(metrics),
        where=evaluated_on(metrics),
        rows=rows,
        charts=[
            ("Weakest after tuning", weakest),
            ("Most improved of the others", improved),
            ("All others", rest),
        ],
        side=CURVE_SIDE,
        gained=gained,
        lost=lost,
    )
