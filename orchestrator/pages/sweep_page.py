"""The page of a sweep: one self-contained HTML file about all its points."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import spearmanr

from orchestrator.pages.charts import Chart, Frame, Line, Mark, make_chart, padded
from orchestrator.pages.html import (
    between,
    config_value,
    fixed,
    page_template,
    quantity,
    signed,
    signed_between,
)
from orchestrator.pages.metrics_summary import spread
from orchestrator.sweep.results import Compared, PointResult, finite

_LEARNING_FRAME = Frame(width=520, height=300, left=42, right=504, top=10, bottom=264)
_SCATTER_FRAME = Frame(width=400, height=330, left=46, right=390, top=10, bottom=286)
# The order in which points are drawn; the last one lies on top.
_ROLES = ("stopped", "finished", "default", "best")


@dataclass(frozen=True)
class SweepData:
    """All that the page shows.

    `axes`: the keys of `sweep.space`. `objective`: what points are ranked by, in words. `best`: the
    number of the best point, 0 if nothing is better than the default. `compared`: None without
    images, or if the default could not be tuned. `epochs`: of a full tuning. `asha`: its rule in
    words, or "". `seconds`: tuning (sum over trials), tuning_now (sum over those that this command
    ran), wall; and the counts trials and slots. `best_yaml`: the swept fields of the best point.
    """

    name: str
    axes: list[str]
    objective: str
    points: list[PointResult]
    best: int
    compared: Compared | None
    epochs: int
    asha: str
    seconds: dict[str, float]
    config_yaml: str
    best_yaml: str
    embedded: bool
    vlm: str

    @property
    def finished(self) -> list[PointResult]:
        """The points with a rank, best first; of equal ones the lower number."""
        done = [point for point in self.points if point.finished]
        return sorted(done, key=lambda point: (-fmean(point.objective), point.number))

    def count(self, status: str) -> int:
        """How many points have this status."""
        return sum(point.status == status for point in self.points)

    def role(self, point: PointResult) -> str:
        """How a point is marked: best, default or its status."""
        if point.number == self.best and point.finished:
            return "best"
        return "default" if point.number == 0 else point.status


def lead(data: SweepData) -> str:
    """Which point is best and by how much, in a sentence that says where this may be chance."""
    compared, tried = data.compared, quantity(len(data.points), "point")
    if not data.finished:
        return f"None of the {tried} finished, so there is nothing to choose from."
    if data.best == 0:
        text = (
            f"Of {tried}, none is better than the default (the config as written) by "
            f"{data.objective}."
        )
        if compared is None:
            return text
        return (
            f"{text} On {compared.where} the default reaches {fixed(compared.default)} mAP "
            f"(95 % interval {between(compared.default_ci)})."
        )
    best = next(point for point in data.points if point.number == data.best)
    values = f" ({settings(data, best)})" if len(data.axes) <= 3 else ""
    text = f"Of {tried}, point {data.best}{values} is best by {data.objective}."
    if compared is None:
        default_failed = any(point.number == 0 and not point.finished for point in data.points)
        return f"{text} How much it gains is not known: " + (
            "the default could not be tuned."
            if default_failed
            else "there were no images to compare it with the default on."
        )
    gap, *ends = compared.difference
    low, high = ends
    text += (
        f" On {compared.where} it reaches {fixed(compared.best)} mAP and the default "
        f"{fixed(compared.default)}: a difference of {signed(gap)} (95 % interval "
        f"{signed_between(ends)})."
    )
    if math.isnan(low):
        return f"{text} There are too few images to say whether this is chance."
    if low > 0:
        return text
    if high < 0:
        return f"{text} It does worse there than the default, so keep the default."
    return f"{text} This is no clear gain: the interval includes zero, so it may be chance."


def caution(data: SweepData) -> str:
    """A warning where most points have no final figure, else ""."""
    stopped, failed = data.count("stopped"), data.count("failed")
    points = quantity(len(data.points), "point")
    if 2 * failed > len(data.points):
        return f"Most points failed: {failed:,} of {points}. The table of points has the reasons."
    if 2 * (stopped + failed) > len(data.points):
        also = f" and {failed:,} failed" if failed else ""
        return (
            f"Most points did not finish: of {points}, {stopped:,} were stopped early{also}. What "
            "a stopped point would have reached is unknown."
        )
    return ""


def stops(data: SweepData) -> str:
    """How many points were stopped early, and when."""
    after = Counter(point.epochs for point in data.points if point.status == "stopped")
    if not after:
        return "No point was stopped early."
    when = [f"{number:,} after epoch {epoch}" for epoch, number in sorted(after.items())]
    return (
        f"{'ASHA stopped' if data.asha else 'Stopped early:'} {sum(after.values()):,} of "
        f"{quantity(len(data.points), 'point')}: {', '.join(when)}."
    )


def saved(data: SweepData) -> float | None:
    """The share of the epochs of one seed of every point that stopping early saved."""
    full = data.epochs * len(data.points)
    spared = sum(data.epochs - point.epochs for point in data.points if point.status == "stopped")
    return spared / full if full else None


def settings(data: SweepData, point: PointResult) -> str:
    """A point's values of the swept fields in one line."""
    return ", ".join(f"{axis} = {config_value(point.fields[axis])}" for axis in data.axes)


def learning_chart(data: SweepData) -> Chart | None:
    """The objective over the epochs, a line for each seed; None before any epoch.

    Its lower end leaves out one value in twenty, so that hopeless points do not squash the rest.
    """
    values = sorted(v for point in data.points for curve in point.curves for v in finite(curve))
    if not values:
        return None
    low, high = padded(values[len(values) // 20], values[-1])
    lines, marks = [], []
    for point in _drawn(data):
        role = data.role(point)
        label = f"Point {point.number} ({point.status}): {settings(data, point)}"
        for curve in point.curves:
            corners = [(float(e), v) for e, v in enumerate(curve, start=1) if math.isfinite(v)]
            if corners:
                lines.append(Line(f"l-{role}", corners, label))
                end = (corners[-1][0], max(corners[-1][1], low))
                marks += [Mark(f"m-{role}", end, label)] if role != "finished" else []
    title = f"{data.objective} over the epochs"
    ranges = ((1, max(data.epochs, 2)), (low, high))
    return make_chart(title, title, _LEARNING_FRAME, ranges, lines, marks, "epoch")


def scatter_chart(data: SweepData) -> Chart | None:
    """Image mAP over text mAP of the finished points; None where text selects."""
    maps = _text_and_image_maps(data)
    if not maps:
        return None
    text, images = zip(*maps.values(), strict=True)
    marks = [
        Mark(
            f"m-{data.role(point)}",
            maps[point.number],
            f"Point {point.number}: text {fixed(maps[point.number][0])}, "
            f"images {fixed(maps[point.number][1])}",
        )
        for point in _drawn(data)
        if point.number in maps
    ]
    return make_chart(
        "mAP on the selection half of the images (upwards) over mAP on held-out captions",
        f"Scatter plot of {quantity(len(maps), 'finished point')}",
        _SCATTER_FRAME,
        (padded(min(text), max(text)), padded(min(images), max(images))),
        marks=marks,
        x_title="held-out captions, mAP",
        epochs=False,
    )


def text_verdict(data: SweepData) -> str:
    """Whether text ranks the finished points as images do, and what choosing by it would cost."""
    maps = _text_and_image_maps(data)
    text, images = zip(*maps.values(), strict=True)
    points = quantity(len(maps), "point")
    if len(maps) < 3:
        return f"There is no rank correlation: the {points} are too few to rank."
    if len(set(text)) == 1 or len(set(images)) == 1:
        return f"There is no rank correlation: the {points} are all alike on text or on the images."
    found = spearmanr(text, images)
    if not found.pvalue < 0.05:
        means = "this may be chance, so there is no evidence that text can choose"
    elif found.statistic < 0:
        means = "text ranks the settings the wrong way round, so it must not choose"
    elif found.statistic < 0.7:
        means = "text separates poor settings from good ones, but does not find the best"
    else:
        means = "text ranks the settings much as the images do, so it can choose without labels"
    chosen = max(maps, key=lambda number: (maps[number][0], -number))
    rank, gap = 1 + sum(y > maps[chosen][1] for y in images), max(images) - maps[chosen][1]
    behind = f"has rank {rank} of {len(maps)}, {fixed(gap)} mAP below the best"
    return (
        f"Spearman’s rank correlation is {fixed(float(found.statistic), 2)} over {points}: "
        f"{means}, for this label list and these fields. A sweep without labelled images would "
        f"have chosen point {chosen}, the best on text; on the images it "
        f"{'is the best too' if rank == 1 else behind}."
    )


def _text_and_image_maps(data: SweepData) -> dict[int, tuple[float, float]]:
    """By the point's number, mAP on held-out captions and on the selection half of the images."""
    return {
        point.number: (fmean(point.text_map), fmean(point.objective))
        for point in data.finished
        if point.on_images
    }


def _drawn(data: SweepData) -> list[PointResult]:
    """The points that have a figure, in the order of drawing."""
    points = [point for point in data.points if point.status != "failed"]
    return sorted(points, key=lambda p: (_ROLES.index(data.role(p)), p.level or 0.0, p.number))


def render_sweep(data: SweepData) -> str:
    """The page as one HTML file."""
    done = data.finished
    rest = [point for point in data.points if not point.finished]
    rest.sort(key=lambda point: (point.status, -(point.level or 0.0), point.number))
    scatter = scatter_chart(data)
    slots = data.seconds["wall"] * data.seconds["slots"]
    return page_template("sweep.html.j2").render(
        data=data,
        lead=lead(data),
        caution=caution(data),
        seeds=max((len(point.objective) for point in done), default=0),
        selected={data.role(point): fmean(point.objective) for point in done},
        rows=[*enumerate(done, start=1), *((None, point) for point in rest)],
        learning=learning_chart(data),
        stops=stops(data),
        saved=saved(data),
        scatter=scatter,
        verdict=text_verdict(data) if scatter else "",
        in_use=data.seconds["tuning_now"] / slots if slots else None,
        mean=fmean,
        spread=spread,
    )
