"""The run report: one self-contained HTML file about one run.

`render` takes plain data and returns HTML that loads nothing from anywhere: images are data URIs,
charts are inline SVG. Whatever a person or a language model wrote is escaped by the template.
"""

from __future__ import annotations

import math
import statistics
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from prompt_tuning.knowledge.caption_coverage import named

METHODS = ("zero_shot", "templates", "synonym_average", "caption_average", "tuned")
CURVES = (
    ("loss", "Train loss", min),
    ("held_out_loss", "Held-out loss", min),
    ("held_out_map", "Held-out text mAP", max),
)
EXAMPLE_SIDE = 320  # of an image in a page, the longer one
_FEW_HELD_OUT = 50
# A chart's size and, inside it, the borders of its plot, in SVG units.
FRAME = {"width": 320, "height": 190, "left": 42, "right": 310, "top": 10, "bottom": 164}


@dataclass(frozen=True)
class Example:
    """One evaluated image: a JPEG, its true tags, and its best-scored tags, best first."""

    image: bytes
    true: list[str]
    predicted: list[tuple[str, float]]

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return data_uri(self.image)

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

    `knowledge` has model, asked, kept and dropped (counts by kind, by kind, by reason; `kept`
    counts sentences), captions_per_category, attributes, samples, tokens and seconds; it may be
    empty. Each pair of numbers in `metrics["ci"]` is shown as an interval, under its own name.
    `notes`: what people must know about the figures, in sentences.
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


class ClassRow(NamedTuple):
    """Average precision of one class; None where no image has the class."""

    name: str
    tuned: float | None
    untuned: float | None

    @property
    def difference(self) -> float | None:
        """How far tuned is above the best baseline."""
        if self.tuned is None or self.untuned is None:
            return None
        return self.tuned - self.untuned


class Line(NamedTuple):
    """One seed's curve: the points of a polyline, and where its best epoch is."""

    style: int
    points: str
    best: tuple[float, float]


class Chart(NamedTuple):
    """One small chart in SVG coordinates; ticks are (position, label)."""

    title: str
    label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def data_uri(jpeg: bytes) -> str:
    """An image as part of the page itself."""
    return "data:image/jpeg;base64," + b64encode(jpeg).decode("ascii")


def fixed(value: float | None, digits: int = 1) -> str:
    """A figure with a real minus sign, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign: +1.2, −0.4; plain 0.0 where it rounds to nothing."""
    if value is None or round(value, 1) == 0:
        return "–" if value is None else "0.0"
    return f"{value:+.1f}".replace("-", "−")


def between(ends: Sequence[float] | None, shown: Callable[[float], str] = fixed) -> str:
    """An interval: 1.2 to 3.4, or a dash where there is none."""
    if ends is None or math.isnan(ends[0]):
        return "–"
    return f"{shown(ends[0])} to {shown(ends[1])}"


def signed_between(ends: Sequence[float] | None) -> str:
    """An interval of a difference: −0.3 to +1.2, or a dash where there is none."""
    return between(ends, signed)


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 42 s, 3 min 5 s, 2 h 4 min."""
    whole = round(seconds)
    if whole >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """About `most` round numbers in [low, high], in steps of 1, 2 or 5 and of at least `least`."""
    rough = max((high - low) / most, least, 1e-9)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _finite(history: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(entry["epoch"], entry.get(key)) for entry in history]
    return [(float(e), float(v)) for e, v in pairs if v is not None and math.isfinite(v)]


def curves(histories: dict[int, list[dict[str, Any]]]) -> list[Chart]:
    """A chart for each quantity that was recorded, with a line for each seed."""
    charts = []
    for key, title, best in CURVES:
        series = {seed: _finite(history, key) for seed, history in sorted(histories.items())}
        epochs = [e for points in series.values() for e, _ in points]
        values = [v for points in series.values() for _, v in points]
        if not values:
            continue
        margin = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
        low, high = min(values) - margin, max(values) + margin
        x = scale(min(epochs), max(*epochs, min(epochs) + 1), FRAME["left"], FRAME["right"])
        y = scale(low, high, FRAME["bottom"], FRAME["top"])
        lines, ends = [], []
        for style, (seed, points) in enumerate(series.items()):
            if points:
                peak = best(v for _, v in points)
                path = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in points)
                lines.append(Line(style, path, next((x(e), y(v)) for e, v in points if v == peak)))
                ends.append(f"seed {seed} from {points[0][1]:.2f} to {points[-1][1]:.2f}")
        levels = ticks(low, high, 4)
        gap = (levels[-1] - levels[0]) / max(1, len(levels) - 1) if levels else 0.0
        digits = max(0, -math.floor(math.log10(gap or 0.01) + 1e-9))
        label = f"{title} up to epoch {max(epochs):.0f}: {'; '.join(ends)}"
        x_ticks = [(x(e), f"{e:.0f}") for e in ticks(min(epochs), max(epochs), 6, least=1.0)]
        y_ticks = [(y(v), fixed(v, digits)) for v in levels]
        charts.append(Chart(title, label, lines, x_ticks, y_ticks))
    return charts


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Takes [low, high] to [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def best_baseline(scores: dict[str, float]) -> str | None:
    """The best of the methods that tuning must beat."""
    return max(
        (method for method in scores if method != "tuned"), key=scores.__getitem__, default=None
    )


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def class_rows(ap: dict[str, dict[str, float | None]], untuned: str | None) -> list[ClassRow]:
    """Classes with their average precision, weakest first, those without positives last."""
    other = ap.get(untuned, {}) if untuned else {}
    rows = [ClassRow(name, score, other.get(name)) for name, score in ap["tuned"].items()]
    return sorted(rows, key=lambda row: (row.tuned is None, row.tuned or 0.0, row.name))


def evaluated_on(metrics: dict[str, Any] | None) -> str:
    """What the figures were measured on, in words."""
    if metrics is None:
        return "held-out sentences (there were no images)"
    of = metrics["dataset"]
    left_out = metrics["protocol"].get("images_left_out_as_they_selected", 0)
    s = "" if metrics["images"] == 1 else "s"
    return (
        f"{metrics['images']:,} "
        + (f"composed scene{s}" if of == "scenes" else f"image{s} of {of}")
        + (f" (not the {left_out:,} that selected)" if left_out else "")
    )


def caption_notes(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know of the captions before trusting the run's figures and tags."""
    captions = metrics.get("captions")
    if captions is None:
        return []
    notes = []
    if missing := captions["labels_without_training"]:
        notes.append(
            f"No caption to tune on shows {len(missing)} of {len(metrics['positives'])} labels: "
            f"{named(missing)}. Tuning takes them as wrong answers only; do not rely on their tags."
        )
    if (held_out := captions["held_out"]) < _FEW_HELD_OUT:
        notes.append(
            f"Only {held_out} caption{' was' if held_out == 1 else 's were'} held out to choose "
            "the checkpoint, to calibrate scores and for the text mAP: too few to rely on."
        )
    if unseen := captions["labels_without_held_out"]:
        notes.append(
            f"No held-out caption shows {named(unseen)}: the text mAP leaves such labels out, and "
            "their thresholds are those that all labels share."
        )
    return notes


def summary(data: ReportData, scores: dict[str, float], by_seed: Sequence[float]) -> str:
    """One sentence in plain language; says so where tuning did not help."""
    kept = data.knowledge.get("kept", {})
    sentences = sum(kept.values())
    text = f"Prompts tuned on {sentences:,} sentences" if sentences else "Prompts tuned on text"
    given = {"your own": kept.get("file", 0), "from CLIP's templates": kept.get("template", 0)}
    if data.knowledge.get("model") and sum(given.values()) < sentences:
        text += f" written by {data.knowledge['model']}"
    told = [
        f"{'all' if count == sentences else f'{count:,}'} of them {what}"
        for what, count in given.items()
        if count
    ]
    text += f" ({', '.join(told)})" if told else ""
    if "tuned" not in scores:
        return text + " were not evaluated."
    text += f" reach {fixed(scores['tuned'])} mAP on {evaluated_on(data.metrics)}"
    seeds = max(len(by_seed), len(data.histories))
    text += f" (mean of {seeds} seeds)" if seeds > 1 else ""
    other = best_baseline(scores)
    if other is None:
        return text + "."
    gap = round(scores["tuned"], 1) - round(scores[other], 1)
    named = f"the best baseline ({other}, {fixed(scores[other])})"
    if round(gap, 1) == 0:
        return f"{text}: tuning did not help, as {named} reaches the same."
    if gap < 0:
        return f"{text}: tuning did not help, as this is {fixed(-gap)} below {named}."
    doubt = spread(by_seed) or 0.0
    within = f", a lead within the spread over seeds (± {fixed(doubt)})" if gap <= doubt else ""
    return f"{text}, {fixed(gap)} above {named}{within}."


def local_caveat(metrics: dict[str, Any]) -> str:
    """Says so where the local branch alone is better than the fused scores that are quoted."""
    maps = metrics.get("map", {})
    local = {method: row["local"] for method, row in maps.items()}
    if not local or max(local.values()) <= max(row["fused"] for row in maps.values()):
        return ""
    best_baseline = max(
        (method for method in local if method != "tuned"), key=lambda method: local[method]
    )
    return (
        f"The local branch alone does better here than both together: {best_baseline} reaches "
        f"{fixed(local[best_baseline])}, tuned {fixed(local['tuned'])}. Fused is quoted because it "
        "was chosen before measuring, not on these images."
    )


def page_template(name: str) -> Template:
    """A page of `templates/`, which escapes whatever it is given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": fixed,
        "signed": signed,
        "between": between,
        "signed_between": signed_between,
        "duration": duration,
    }
    return environment.get_template(name)


def render(data: ReportData) -> str:
    """The report as one HTML file."""
    metrics = data.metrics or {}
    fused = {method: row["fused"] for method, row in metrics.get("map", {}).items()}
    scores = fused or data.held_out or {}
    by_seed = metrics.get("map_by_seed", {}).get("tuned", {})
    untuned = best_baseline(scores)
    return page_template("report.html.j2").render(
        data=data,
        metrics=metrics,
        scores=scores,
        methods=sorted(scores, key=lambda method: [*METHODS, method].index(method)),
        summary=summary(data, scores, by_seed.get("fused", [])),
        caveat=local_caveat(metrics),
        where=evaluated_on(data.metrics),
        untuned=untuned,
        by_seed=by_seed,
        spread={branch: spread(values) for branch, values in by_seed.items()},
        rows=class_rows(metrics["ap"], untuned) if metrics else [],
        charts=curves(data.histories),
        frame=FRAME,
        median=statistics.median,
    )
