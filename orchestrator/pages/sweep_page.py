"""The page of a sweep: one self-contained HTML file about all its points."""

from __future__ import annotations

from statistics import fmean

from orchestrator.pages.run_page import FRAME, page_template, spread, ticks
from orchestrator.pages.sweep_drawings import (
    AXIS_LENGTH,
    SQUARE,
    WIDE,
    broken,
    heights,
    heights_of_curves,
    learning,
    of_epochs,
    parallel,
    plots,
    scatter,
)
from orchestrator.pages.sweep_words import caution, lead, learning_words, saved, stops
from orchestrator.sweep.swept_points import SweepData, word


def render_sweep(data: SweepData) -> str:
    """The page as one HTML file."""
    shown = heights(data, room=3)
    of_curves = heights_of_curves(data, shown)
    done = data.finished
    rest = [point for point in data.points if not point.finished]
    rest.sort(key=lambda point: (point.status, -(point.level or 0.0), point.number))
    x, y = of_epochs(data, of_curves)
    slots = data.seconds["wall"] * data.seconds["slots"]
    return page_template("sweep.html.j2").render(
        data=data,
        lead=lead(data),
        caution=caution(data),
        seeds=max((len(point.objective) for point in done), default=0),
        selected={data.role(point): fmean(point.objective) for point in done},
        rows=[*enumerate(done, start=1), *((None, point) for point in rest)],
        plots=plots(data, shown),
        below=sum(p.level is not None and p.level < shown.low for p in data.points),
        parallel=parallel(data) if len(done) > 1 else None,
        learning=learning(data, of_curves),
        learning_words=learning_words(data),
        epoch_ticks=[(x(e), f"{e:.0f}") for e in ticks(1, data.epochs, 10, least=1.0)],
        level_ticks=[(y(value), label) for value, label in of_curves.ticks],
        stops=stops(data),
        saved=saved(data),
        scatter=scatter(data),
        in_use=data.seconds["tuning_now"] / slots if slots else None,
        frame=FRAME,
        wide=WIDE,
        square=SQUARE,
        axis_length=AXIS_LENGTH,
        broken=broken,
        mean=fmean,
        spread=spread,
        word=word,
    )
