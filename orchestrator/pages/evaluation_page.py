"""The evaluation page: one self-contained HTML file about one run on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.pages.charts import Point, polyline
from orchestrator.pages.html import between, fixed, page_template, signed
from orchestrator.pages.metrics_summary import (
    ClassRow,
    best_baseline,
    class_rows,
    evaluated_on,
    fused_scores,
    in_order,
    local_caveat,
)

_CURVES_PER_SECTION = 12
_CHANGES_SHOWN = 10
# The side of the square in which a precision-recall curve is drawn, in SVG units.
_CURVE_SIDE = 100

Points = Sequence[Point]


@dataclass(frozen=True)
class Mistake:
    """An image (a JPEG) with a high score for a class that it does not show."""

    image: bytes
    name: str
    score: float
    true: list[str]


@dataclass(frozen=True)
class EvaluationData:
    """All that the page shows; `metrics` is the metrics file.

    `curves`: for each class that has positives, the (recall, precision) pairs in [0, 1] of the
    artifact's prompts and of the best baseline. `mistakes`: highest score first.
    """

    run: str
    vlm: str
    embedded: bool
    metrics: dict[str, Any]
    curves: Mapping[str, tuple[Points, Points]]
    mistakes: list[Mistake]


class CurveChart(NamedTuple):
    """Precision over recall of one class: two polylines in a square of `_CURVE_SIDE`."""

    row: ClassRow
    tuned: str
    untuned: str


def lead(metrics: dict[str, Any]) -> str:
    """What tuning gained on these images, in a sentence that says where this may be chance."""
    fused = fused_scores(metrics)
    baseline = best_baseline(fused)
    assert baseline is not None
    interval = metrics["ci"].get(f"tuned - {baseline}")
    seeds = len(metrics["map_by_seed"]["tuned"]["fused"])
    mean = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    text = (
        f"On {evaluated_on(metrics)}, the prompts tuned on text alone reach "
        f"{fixed(fused['tuned'])} mAP{mean}, and the best baseline ({baseline}) "
        f"{fixed(fused[baseline])}: a difference of {signed(fused['tuned'] - fused[baseline])}"
    )
    if interval is None:
        return f"{text}."
    text += f" (95 % interval {between(interval, signed)})."
    low, high = interval
    if low > 0:
        return text
    if high < 0:
        return f"{text} Tuning lowered the mAP here."
    return f"{text} The interval includes zero, so this may be chance."


def compared_lines(metrics: dict[str, Any]) -> list[str]:
    """How the run compares with an adapted artifact and with another run, a sentence each."""
    lines = []
    if adapted := metrics.get("adapted"):
        tags = adapted["calibration"]["at_thresholds"]["micro"]["f1"]
        lines.append(
            f"{adapted['artifact']}, which learned from {adapted['learned_from_images']} labelled "
            f"images (the {metrics['protocol']['images_left_out_as_they_taught']} among these are "
            f"left out): {fixed(adapted['map']['fused'])} mAP (fused), "
            f"{_difference(adapted['difference'])} over the tuned prompts; F1 at its thresholds "
            f"{fixed(tags)}, before it learned "
            f"{fixed(metrics['calibration']['at_thresholds']['micro']['f1'])}."
        )
    if against := metrics.get("against"):
        maps = against["map"]
        lines.append(
            f"Compared with {against['run']}, over the {against['classes']} classes with positives "
            f"that both have: {fixed(maps['this'])} and {fixed(maps['other'])} mAP (tuned, fused), "
            f"a difference of {_difference(against['difference'])}."
        )
    return lines


def _difference(of: dict[str, Any]) -> str:
    ends = (of["low"], of["high"])
    interval = "" if ends[0] is None else f" (95 % interval {between(ends, signed)})"
    return f"{signed(of['mean'])}{interval}"


def changes(
    ap: dict[str, dict[str, float | None]],
) -> tuple[list[ClassRow], list[ClassRow]]:
    """The (at most ten) classes that gained most over zero_shot, and those that lost most."""
    rows = sorted(class_rows(ap, "zero_shot"), key=lambda row: (row.difference or 0.0, row))
    gained = [row for row in reversed(rows) if (row.difference or 0.0) > 0]
    lost = [row for row in rows if (row.difference or 0.0) < 0]
    return gained[:_CHANGES_SHOWN], lost[:_CHANGES_SHOWN]


def curve_charts(
    rows: list[ClassRow], curves: Mapping[str, tuple[Points, Points]]
) -> tuple[list[CurveChart], list[CurveChart], list[CurveChart]]:
    """The charts of the weakest classes, of the most improved others, and of the rest."""
    charts = [
        CurveChart(row, *(_curve(points) for points in curves[row.name]))
        for row in rows
        if row.name in curves
    ]
    weakest, others = charts[:_CURVES_PER_SECTION], charts[_CURVES_PER_SECTION:]
    improved = sorted(
        (chart for chart in others if (chart.row.difference or 0.0) > 0),
        key=lambda chart: -(chart.row.difference or 0.0),
    )[:_CURVES_PER_SECTION]
    return weakest, improved, [chart for chart in others if chart not in improved]


def _curve(points: Points) -> str:
    """From recall 0 on, so that the curve of a single positive is visible too."""
    from_zero = ((0.0, points[0][1]), *points)
    return polyline([(_CURVE_SIDE * recall, _CURVE_SIDE * (1 - p)) for recall, p in from_zero])


def render_evaluation(data: EvaluationData) -> str:
    """The page as one HTML file."""
    metrics = data.metrics
    fused = fused_scores(metrics)
    untuned = best_baseline(fused)
    rows = class_rows(metrics["ap"], untuned)
    weakest, improved, rest = curve_charts(rows, data.curves)
    gained, lost = changes(metrics["ap"])
    return page_template("evaluation.html.j2").render(
        data=data,
        metrics=metrics,
        fused=fused,
        methods=in_order(fused),
        untuned=untuned,
        summary=lead(metrics),
        compared=compared_lines(metrics),
        caveat=local_caveat(metrics),
        where=evaluated_on(metrics),
        rows=rows,
        charts=[
            ("Weakest after tuning", weakest),
            ("Most improved of the others", improved),
            ("All others", rest),
        ],
        side=_CURVE_SIDE,
        gained=gained,
        lost=lost,
    )
