"""The run report: one self-contained HTML file about one run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.pages.charts import Chart, Frame, Line, Mark, make_chart, padded
from orchestrator.pages.html import fixed, page_template, quantity
from orchestrator.pages.metrics_summary import (
    best_baseline,
    class_rows,
    evaluated_on,
    fused_scores,
    in_order,
    local_caveat,
    spread,
)

_CURVES = (
    ("loss", "Training loss", min),
    ("held_out_loss", "Held-out loss", min),
    ("held_out_map", "Held-out text mAP", max),
)
_FRAME = Frame(width=320, height=190, left=42, right=310, top=10, bottom=164)


@dataclass(frozen=True)
class Example:
    """One evaluated image: a JPEG, its true tags, and its best-scored tags, best first."""

    image: bytes
    true: list[str]
    predicted: list[tuple[str, float]]

    @property
    def tags(self) -> list[tuple[str, str, float | None]]:
        """(hit | false | miss, name, score): the predicted in their order, then the missed."""
        shown = {name for name, _ in self.predicted}
        tags: list[tuple[str, str, float | None]] = [
            ("hit" if name in self.true else "false", name, score) for name, score in self.predicted
        ]
        return tags + [("miss", name, None) for name in self.true if name not in shown]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows; `metrics` as in the metrics file, None where there were no images.

    `knowledge` may be empty, or has model, asked (by kind of question), kept (captions by kind),
    dropped (by reason), captions_per_category, attributes, samples, tokens and seconds. Each pair
    of numbers in `metrics["ci"]` is shown as an interval, under its name. `notes`: sentences that
    must be read before the figures. `explained`: the captions that moved each label most.
    """

    name: str
    config_yaml: str
    vlm: str
    embedded: bool
    stages: list[dict[str, Any]]
    versions: dict[str, str]
    metrics: dict[str, Any] | None
    held_out: dict[str, float] | None
    histories: dict[int, list[dict[str, Any]]]
    hierarchy: list[dict[str, Any]]
    examples: list[Example]
    knowledge: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    explained: dict[str, list[str]] = field(default_factory=dict)


def learning_charts(histories: dict[int, list[dict[str, Any]]]) -> list[Chart]:
    """A chart for each quantity that was recorded, with a line for each seed.

    `histories`: by seed, an entry for each epoch.
    """
    charts = []
    for key, title, best in _CURVES:
        series = {seed: _finite(history, key) for seed, history in sorted(histories.items())}
        points = [point for line in series.values() for point in line]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        drawn = {style: line for style, line in enumerate(series.values()) if line}
        ends = [
            f"seed {seed} from {line[0][1]:.2f} to {line[-1][1]:.2f}"
            for seed, line in series.items()
            if line
        ]
        charts.append(
            make_chart(
                title,
                f"{title} up to epoch {max(epochs):.0f}: {'; '.join(ends)}",
                _FRAME,
                ((min(epochs), max(*epochs, min(epochs) + 1)), padded(min(values), max(values))),
                [Line(f"curve s{style % 5}", line) for style, line in drawn.items()],
                [
                    Mark(f"peak s{style % 5}", best(line, key=lambda point: point[1]))
                    for style, line in drawn.items()
                ],
            )
        )
    return charts


def _finite(history: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(entry["epoch"], entry.get(key)) for entry in history]
    return [(float(e), float(v)) for e, v in pairs if v is not None and math.isfinite(v)]


def summary(data: ReportData, scores: dict[str, float], by_seed: Sequence[float]) -> str:
    """The result in one sentence, which also says where tuning did not help."""
    kept = data.knowledge.get("kept", {})
    captions = sum(kept.values())
    text = f"Prompts tuned on {quantity(captions, 'caption') if captions else 'text'}"
    given = {"your own": kept.get("file", 0), "from CLIP's templates": kept.get("template", 0)}
    if data.knowledge.get("model") and sum(given.values()) < captions:
        text += f" written by {data.knowledge['model']}"
    sources = [
        f"{'all' if number == captions else f'{number:,}'} of them {source}"
        for source, number in given.items()
        if number
    ]
    text += f" ({', '.join(sources)})" if sources else ""
    if "tuned" not in scores:
        return text + " were not evaluated."
    text += f" reach {fixed(scores['tuned'])} mAP on {evaluated_on(data.metrics)}"
    seeds = max(len(by_seed), len(data.histories))
    text += f" (mean of {seeds} seeds)" if seeds > 1 else ""
    baseline = best_baseline(scores)
    if baseline is None:
        return text + "."
    gap = round(scores["tuned"], 1) - round(scores[baseline], 1)
    named = f"the best baseline ({baseline}, {fixed(scores[baseline])})"
    if round(gap, 1) == 0:
        return f"{text}: tuning did not help, as {named} reaches the same."
    if gap < 0:
        return f"{text}: tuning did not help, as this is {fixed(-gap)} below {named}."
    doubt = spread(by_seed) or 0.0
    within = f", a lead within the spread over seeds (± {fixed(doubt)})" if gap <= doubt else ""
    return f"{text}, {fixed(gap)} above {named}{within}."


def render(data: ReportData) -> str:
    """The report as one HTML file."""
    metrics = data.metrics or {}
    scores = fused_scores(metrics) or data.held_out or {}
    by_seed = metrics.get("map_by_seed", {}).get("tuned", {})
    untuned = best_baseline(scores)
    return page_template("report.html.j2").render(
        data=data,
        metrics=metrics,
        scores=scores,
        methods=in_order(scores),
        summary=summary(data, scores, by_seed.get("fused", [])),
        caveat=local_caveat(metrics),
        where=evaluated_on(data.metrics),
        untuned=untuned,
        by_seed=by_seed,
        spread={branch: spread(values) for branch, values in by_seed.items()},
        rows=class_rows(metrics["ap"], untuned) if metrics else [],
        charts=learning_charts(data.histories),
        median=statistics.median,
    )
