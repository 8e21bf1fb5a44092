"""Line charts and scatter plots as inline SVG; the macro `draw` of parts.html.j2 shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.pages.html import fixed

Point = tuple[float, float]
Range = tuple[float, float]


class Frame(NamedTuple):
    """The size of a chart and, inside it, the borders of its plot area, in SVG units."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


class Line(NamedTuple):
    """A line through points; `style` is its CSS class, `label` its tooltip."""

    style: str
    points: Sequence[Point]
    label: str = ""


class Mark(NamedTuple):
    """A circle at a point; `style` is its CSS class, `label` its tooltip."""

    style: str
    at: Point
    label: str = ""


class Chart(NamedTuple):
    """A chart ready to be drawn: all positions are in SVG units, ticks are (position, text).

    `label` describes the chart to a reader who does not see it. Each line is (style, points as the
    attribute of a `polyline`, tooltip).
    """

    title: str
    label: str
    frame: Frame
    lines: list[tuple[str, str, str]]
    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_title: str


def make_chart(
    title: str,
    label: str,
    frame: Frame,
    ranges: tuple[Range, Range],
    lines: Sequence[Line] = (),
    marks: Sequence[Mark] = (),
    x_title: str = "",
    epochs: bool = True,
) -> Chart:
    """Scale lines and marks to the frame, whose borders are the `ranges` of x and y.

    `epochs`: whether x counts epochs, so that its ticks are whole numbers.
    """
    (left, right), (low, high) = ranges
    x = scale(left, right, frame.left, frame.right)
    y = scale(low, high, frame.bottom, frame.top)
    drawn = [
        (line.style, polyline([(x(a), y(b)) for a, b in line.points]), line.label) for line in lines
    ]
    return Chart(
        title,
        label,
        frame,
        drawn,
        [Mark(mark.style, (x(mark.at[0]), y(mark.at[1])), mark.label) for mark in marks],
        [(x(tick), text) for tick, text in _labelled(ticks(left, right, 6, 1.0 if epochs else 0))],
        [(y(tick), text) for tick, text in _labelled(ticks(low, high, 4))],
        x_title,
    )


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A function that maps [low, high] linearly to [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def padded(low: float, high: float) -> Range:
    """A range with a margin on both sides, also where it has no width."""
    margin = 0.06 * (high - low) or 0.05 * abs(low) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """About `most` round numbers in [low, high], at steps of 1, 2 or 5 and of at least `least`."""
    rough = max((high - low) / most, least, 1e-9)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def polyline(points: Sequence[Point]) -> str:
    """The `points` of a polyline; a single one is repeated, so that its round cap is visible."""
    drawn = points if len(points) > 1 else [*points, *points]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with their texts, which have as many decimals as the step between them."""
    step = values[1] - values[0] if len(values) > 1 else 0.01
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, fixed(value, digits)) for value in values]
