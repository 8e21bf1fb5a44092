"""The drawings of a sweep's page, in SVG units: fields, parallel coordinates, curves, scatter."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from orchestrator.pages.run_page import FRAME, fixed, scale, ticks
from orchestrator.pages.sweep_words import field_words, text_words
from orchestrator.sweep.swept_points import SweepData, SweptPoint, finite, settings, word

# Where a drawing's borders are, in SVG units, like `FRAME` of a field's plot.
WIDE = {"width": 520, "height": 300, "left": 42, "right": 504, "top": 10, "bottom": 264}
SQUARE = {"width": 400, "height": 330, "left": 46, "right": 390, "top": 10, "bottom": 286}
# Parallel coordinates: between two axes, beside the outer ones, and an axis's length.
AXIS_GAP, AXIS_MARGIN, AXIS_LENGTH = 106, 58, 250
_LINE = 15  # characters of an axis's name in one line
_FIFTHS = 5


class Axis(NamedTuple):
    """Where each point's value lies, as a fraction in [0, 1]; ticks are (fraction, label).

    The first ticks are those of the columns, each as wide as the fraction `column`.
    """

    at: dict[int, float]
    ticks: list[tuple[float, str]]
    columns: int
    column: float

    @property
    def numeric(self) -> bool:
        """Whether any of the points has a number."""
        return len(self.ticks) > self.columns


class Heights(NamedTuple):
    """The range of the objective that is drawn; `low` may lie above the worst points."""

    low: float
    high: float

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(value, label)."""
        return [(value, word(value)) for value in ticks(self.low, self.high, 4)]


class Mark(NamedTuple):
    """A point in a plot, with a whisker from the worst to the best seed, if several."""

    role: str
    x: float
    y: float
    whisker: tuple[float, float] | None
    label: str


class Plot(NamedTuple):
    """The objective over one field, in the frame `FRAME`; `letters` explain the ticks."""

    name: str
    words: str
    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    letters: list[tuple[str, str]]


class Path(NamedTuple):
    """A line through the parallel axes or over the epochs; `end` is its last point."""

    role: str
    points: str
    end: tuple[float, float]
    label: str
    fifth: int = 0


class Parallel(NamedTuple):
    """Parallel coordinates: axes are (x, lines of the name, ticks), paths drawn in this order."""

    width: int
    top: int
    axes: list[tuple[int, list[str], list[tuple[float, str]]]]
    paths: list[Path]


class Scatter(NamedTuple):
    """What held-out text and the selecting images say of each point, in the frame `SQUARE`."""

    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    correlation: float | None
    words: str


def heights(data: SweepData, room: float) -> Heights:
    """The range of the objective to draw, in which a few hopeless points don't squash the rest.

    Down to the worst finished point, but no more than four times the way from the best to the
    median, the default included; all that `room` times as high where others lie lower.
    """
    levels = [point.level for point in data.points if point.level is not None]
    if not levels:
        return Heights(0.0, 100.0)
    done = data.finished
    means = [fmean(point.objective) for point in done]
    top = max([*levels, *(max(point.objective) for point in done)])
    low = min([*levels, *(min(point.objective) for point in done)])
    if done and (reach := means[0] - median(means)):
        marked = [min(point.objective) for point in done if data.role(point) != "finished"]
        of_finished = max(min(means), min([means[0] - 4 * reach, *marked]))
        low = max(low, top - room * (top - of_finished))
    return _padded([low, top])


def heights_of_curves(data: SweepData, shown: Heights) -> Heights:
    """Lower than `shown`, for the first epochs: 19 in 20 values, three times as high at most."""
    values = sorted(v for p in data.points for curve in p.curves for v in finite(curve))
    if not values:
        return shown
    low = max(values[len(values) // 20], 3 * shown.low - 2 * shown.high)
    return Heights(min(low, shown.low), max(values[-1] + 0.3, shown.high))


def axis(values: Mapping[int, Any], logarithmic: bool) -> Axis:
    """Numbers on a scale, all else (and what has no logarithm) in columns before them."""
    numbers = {
        number: float(value)
        for number, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value > 0 or not logarithmic)
    }
    words = sorted({word(value) for number, value in values.items() if number not in numbers})
    start = min(0.12 * len(words), 0.5) if numbers else 1.0
    column = {name: start * (i + 0.5) / len(words) for i, name in enumerate(words)}
    at = {n: column[word(value)] for n, value in values.items() if n not in numbers}
    marks = [(column[name], name) for name in words]
    if numbers:
        low, high = min(numbers.values()), max(numbers.values())
        whole = all(isinstance(values[number], int) for number in numbers)
        measure = math.log10 if logarithmic else float
        margin = 0.05 * (1 - start)
        if low == high:
            place = scale(measure(low) - 1, measure(high) + 1, start, 1.0)
        else:
            place = scale(measure(low), measure(high), start + margin, 1.0 - margin)
        at |= {number: place(measure(value)) for number, value in numbers.items()}
        levels = _decades(low, high) if logarithmic else []
        if low == high:
            levels = [low]
        elif len(levels) < 2:
            least = 1.0 if whole else 0.0
            found = [ticks(low, high, most, least) for most in (4, 6, 8)]
            levels = next((levels for levels in found if len(levels) > 2), found[-1])
        marks += [(place(measure(value)), word(value)) for value in levels]
    return Axis(at, marks, len(words), start / max(len(words), 1))


def _decades(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic scale: with 1, 2, 5 or 3 if they are no more than six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, step in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        found = [float(f"{factor}e{power}") for power in powers[::step] for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= 6:
            break
    return found


def spread_out(at: Mapping[int, float], most: float) -> dict[int, float]:
    """Puts points with the same value beside each other, always in the same places.

    They take up 0.3 of the way to the next value at most, and `most`.
    """
    groups: dict[float, list[int]] = defaultdict(list)
    for number, value in at.items():
        groups[round(value, 6)].append(number)
    places = sorted(groups)
    gaps = [b - a for a, b in pairwise(places)]
    half = min([most, *(0.3 * gap for gap in gaps)])
    return {
        number: value + half * (2 * _van_der_corput(i + 1) - 1)
        for value, group in groups.items()
        for i, number in enumerate(sorted(group))
    }


def _van_der_corput(i: int) -> float:
    """1/2, 1/4, 3/4, 1/8, 5/8 …: each new one in the widest gap."""
    value, base = 0.0, 0.5
    while i:
        value, base, i = value + base * (i & 1), base / 2, i >> 1
    return value


def plots(data: SweepData, shown: Heights) -> list[Plot]:
    """The objective over each field."""
    levels = {point.number: point.level for point in data.points}
    y = scale(shown.low, shown.high, FRAME["bottom"], FRAME["top"])
    found = []
    for name in data.axes:
        line = axis({p.number: p.fields[name] for p in data.points}, name in data.log_axes)
        at = spread_out(line.at, 0.03 if line.numeric else 0.15)
        marks = []
        for point in _back_to_front(data):
            level = levels[point.number]
            if level is None:
                continue
            seeds = point.objective if point.finished and len(point.objective) > 1 else [level]
            ends = (y(max(min(seeds), shown.low)), y(max(seeds)))
            below = level < shown.low
            marks.append(
                Mark(
                    "below" if below else data.role(point),
                    _across(FRAME, at[point.number]),
                    FRAME["bottom"] - 5 if below else y(level),
                    ends if len(seeds) > 1 and not below else None,
                    f"Point {point.number} ({point.status}): {word(point.fields[name])}, "
                    f"{fixed(level)}",
                )
            )
        named, letters = _fitting(line, _across(FRAME, 1.0) - _across(FRAME, 0.0))
        x_ticks = [(_across(FRAME, fraction), label) for fraction, label in named]
        y_ticks = [(y(value), label) for value, label in shown.ticks]
        found.append(Plot(name, field_words(data, name), marks, x_ticks, y_ticks, letters))
    return found


def _across(frame: Mapping[str, int], fraction: float) -> float:
    return frame["left"] + fraction * (frame["right"] - frame["left"])


def _back_to_front(data: SweepData) -> list[SweptPoint]:
    """In the order of drawing: stopped first, best last."""
    order = ["failed", "stopped", "finished", "default", "best"]
    return sorted(data.points, key=lambda p: (order.index(data.role(p)), p.level or 0.0, p.number))


def _fitting(line: Axis, width: float) -> tuple[list[tuple[float, str]], list[tuple[str, str]]]:
    """Ticks as they are where the columns' labels fit, else with letters, which are explained."""
    columns, scale_ticks = line.ticks[: line.columns], line.ticks[line.columns :]
    if all(len(label) <= line.column * width / 6.5 for _, label in columns):
        return line.ticks, []
    letters = [(_letter(i), label) for i, (_, label) in enumerate(columns)]
    short = [(at, letter) for (at, _), (letter, _) in zip(columns, letters, strict=True)]
    return short + scale_ticks, letters


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def parallel(data: SweepData) -> Parallel:
    """The finished points through all fields to the objective, the worst first."""
    done = data.finished
    lines = [broken(name) for name in (*data.axes, data.objective)]
    top = 20 + 14 * max(len(line) for line in lines)
    bottom = top + AXIS_LENGTH
    columns = [
        axis({p.number: p.fields[name] for p in done}, name in data.log_axes) for name in data.axes
    ]
    at = [spread_out(column.at, 0.03 if column.numeric else 0.08) for column in columns]
    shown = heights(data, room=1)
    y = scale(0.0, 1.0, bottom, top)
    end = scale(shown.low, shown.high, bottom, top)
    paths = []
    for rank, point in reversed(list(enumerate(done))):
        level = fmean(point.objective)
        ends = [y(places[point.number]) for places in at] + [end(max(level, shown.low))]
        corners = [(AXIS_MARGIN + AXIS_GAP * i, height) for i, height in enumerate(ends)]
        label = f"Point {point.number}: {settings(point, data.axes)}; {fixed(level)}"
        fifth = _FIFTHS - 1 - _FIFTHS * rank // len(done)
        paths.append(Path(data.role(point), _polyline(corners), corners[-1], label, fifth))
    paths.sort(key=lambda path: ["finished", "default", "best"].index(path.role))
    marks = [[(y(fraction), label) for fraction, label in column.ticks] for column in columns]
    marks.append([(end(value), label) for value, label in shown.ticks])
    places_of_axes = range(AXIS_MARGIN, AXIS_MARGIN + AXIS_GAP * len(lines), AXIS_GAP)
    axes = list(zip(places_of_axes, lines, marks, strict=True))
    return Parallel(2 * AXIS_MARGIN + AXIS_GAP * (len(lines) - 1), top, axes, paths)


def broken(name: str) -> list[str]:
    """A long name in lines, broken after its dots, commas, underscores and spaces."""
    lines = [""]
    for part in re.findall(r"[^._, ]*[._, ]|[^._, ]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += part
    return lines


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    """A line of a single point goes nowhere twice, so that its round cap is seen."""
    twice = points if len(points) > 1 else [*points, *points]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in twice)


def learning(data: SweepData, shown: Heights) -> list[Path]:
    """The objective over the epochs, a line for each seed, within the frame `WIDE`."""
    x, y = of_epochs(data, shown)
    paths = []
    for point in _back_to_front(data):
        for curve in point.curves if point.status != "failed" else []:
            corners = [(x(e), y(v)) for e, v in enumerate(curve, start=1) if math.isfinite(v)]
            if corners:
                label = f"Point {point.number} ({point.status}): {settings(point, data.axes)}"
                end = (corners[-1][0], min(corners[-1][1], WIDE["bottom"] - 4))
                paths.append(Path(data.role(point), _polyline(corners), end, label))
    return paths


def of_epochs(
    data: SweepData, shown: Heights
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Where an epoch and a value of the objective lie in the frame `WIDE`."""
    return (
        scale(1, max(data.epochs, 2), WIDE["left"] + 8, WIDE["right"] - 8),
        scale(shown.low, shown.high, WIDE["bottom"], WIDE["top"]),
    )


def scatter(data: SweepData) -> Scatter | None:
    """Text against images over the finished points; None where text selects."""
    both = {
        point.number: (fmean(point.text_map), fmean(point.selecting_map))
        for point in data.finished
        if point.text_map and point.selecting_map
    }
    if not both:
        return None
    text, images = [x for x, _ in both.values()], [y for _, y in both.values()]
    x_range, y_range = _padded(text), _padded(images)
    x = scale(x_range.low, x_range.high, SQUARE["left"], SQUARE["right"])
    y = scale(y_range.low, y_range.high, SQUARE["bottom"], SQUARE["top"])
    varied = len(both) > 2 and len(set(text)) > 1 and len(set(images)) > 1
    found = spearmanr(text, images) if varied else None
    marks = [
        Mark(
            data.role(point),
            x(both[point.number][0]),
            y(both[point.number][1]),
            None,
            f"Point {point.number}: text {fixed(both[point.number][0])}, "
            f"images {fixed(both[point.number][1])}",
        )
        for point in _back_to_front(data)
        if point.number in both
    ]
    return Scatter(
        marks,
        [(x(value), label) for value, label in x_range.ticks],
        [(y(value), label) for value, label in y_range.ticks],
        float(found.statistic) if found else None,
        text_words(both, (float(found.statistic), float(found.pvalue)) if found else None),
    )


def _padded(values: Sequence[float]) -> Heights:
    margin = 0.06 * (max(values) - min(values)) or 1.0
    return Heights(min(values) - margin, max(values) + margin)
