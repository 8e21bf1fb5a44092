"""The page of a sweep: what it says and draws, that it loads nothing and that text stays text."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

import pytest
from test_run_page import HOSTILE, NOTE, Page

from orchestrator.pages.sweep_page import (
    SweepData,
    caution,
    lead,
    learning_chart,
    render_sweep,
    saved,
    scatter_chart,
    stops,
    text_verdict,
)
from orchestrator.sweep.results import Compared, PointResult
from workers.tuning.trials import Outcome

AXES: dict[str, Callable[[random.Random], Any]] = {
    "tuning.lr": lambda draw: 10 ** draw.uniform(-4, -1),
    "hierarchy.groups": lambda draw: draw.choice(["auto", "builtin", "llm"]),
    "prompts.depth": lambda draw: draw.randint(1, 4),
    "losses.order": lambda draw: draw.uniform(0, 1),
    "captions.held_out": lambda draw: draw.choice([0.05, 0.1, 0.2]),
    "prompts.init_std": lambda draw: draw.choice([None, 0.01, 0.02, 0.05]),
    "prompts.global_branch.order": lambda draw: draw.choice(
        [["shared", "fine", "coarse", "category"], ["shared", "coarse", "fine", "category"]]
    ),
    "prompts.global_branch.shared,prompts.local_branch.shared": lambda draw: draw.choice(
        [[4, 8], [16, 32]]
    ),
}
DEFAULT = [0.002, "auto", 3, 0.2, 0.1, 0.02, ["shared", "fine", "coarse", "category"], [16, 32]]
SCENES = "200 composed scenes (without the 200 used for selection)"


def outcome(
    curve: list[float],
    status: Literal["finished", "stopped", "failed"] = "finished",
    reason: str = "",
    images: bool = True,
) -> Outcome:
    """A trial of 4.2 seconds per epoch with this learning curve."""
    entries = [
        {"epoch": e, "held_out_loss": -e, "held_out_map": value + (9 if images else 0)}
        | {"started": 0.0, "at": 4.2 * e}
        | ({"selecting_map": value} if images else {})
        for e, value in enumerate(curve, start=1)
    ]
    return Outcome(status, entries, reason)


def fake(points: int = 30, axes: int = 3, asha: bool = True, images: bool = True) -> SweepData:
    """A plausible sweep of three seeds, best near a learning rate of 0.005; point 5 failed."""
    draw = random.Random(points)
    names = list(AXES)[:axes]
    swept = []
    for number in range(points):
        fields: dict[str, Any] = {name: AXES[name](draw) for name in names}
        if number == 0:
            fields = dict(zip(names, DEFAULT, strict=False))
        lr = fields["tuning.lr"]
        reached = 64 - 3 * abs(math.log10(lr / 0.005)) ** 2 + draw.gauss(0, 0.5)
        reached += {"auto": 0.0, "builtin": 0.8, "llm": -0.6}[fields.get("hierarchy.groups", "llm")]
        status, epochs, reason = "finished", 12, ""
        if number == 5:
            status, epochs, reason = "failed", 0, "CUDA out of memory: tried to get 2.00 GiB"
        elif asha and number and reached < 61 + draw.gauss(0, 1):
            status, epochs = "stopped", draw.choice([2, 2, 2, 6])
        curves = [
            [reached - 12 * math.exp(-e / 3) + draw.gauss(0, 0.2) for e in range(1, epochs + 1)]
            for _ in range(3)
        ]
        outcomes = [outcome(curve, status, reason, images) for curve in curves]
        swept.append(PointResult(number, fields, dict(enumerate(outcomes)), 3, images))
    best = max(
        (point for point in swept if point.finished),
        key=lambda point: (sum(point.objective), -point.number),
    )
    return SweepData(
        name="quickstart-sweep",
        axes=names,
        objective="mAP on the selection half of the images"
        if images
        else "mAP on held-out captions",
        points=swept,
        best=best.number,
        compared=Compared(64.1, 62.3, (1.8, 0.7, 2.9), (61.9, 66.2), (60.2, 64.4), SCENES),
        epochs=12,
        asha="a third goes on after 2 and 6 epochs" if asha else "",
        seconds={
            "tuning_now": 1500.0,
            "tuning": 1500.0,
            "wall": 900.0,
            "trials": 3.0 * points,
            "slots": 2.0,
        },
        config_yaml="sweep:\n  base: quickstart.yaml\n  fields: {tuning.lr: [1e-4, 1e-1]}\n",
        best_yaml=f"tuning:\n  lr: {best.fields['tuning.lr']:.4g}\n",
        embedded=True,
        vlm="embedded efficientnet-lite2+minilm",
    )


def ended(
    point: PointResult,
    status: Literal["finished", "stopped", "failed"],
    curves: list[list[float]] | None = None,
    reason: str = "",
) -> PointResult:
    """The point as if its seeds had ended otherwise."""
    outcomes = [outcome(c, status, reason) for c in (point.curves if curves is None else curves)]
    return replace(point, outcomes=dict(enumerate(outcomes)))


def test_every_section_is_there_and_it_loads_nothing() -> None:
    html = render_sweep(fake())
    page = Page(html)
    assert not page.open, "unclosed elements"
    sections = [str(attrs["id"]) for tag, attrs in page.tags if tag == "section"]
    assert sections == [*("result", "learning", "text", "points", "cost", "setup")]
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#" + s for s in sections]
    assert len(page.ids()) == len(set(page.ids()))
    assert not re.search(r"https?://|@import|url\(", html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "link", "iframe", "object", "embed", "base", "use"}
    assert all("src" not in attrs for tag, attrs in page.tags if tag == "script")
    assert "default-src 'none'; img-src data:;" in html
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all("aria-hidden" in a or (a.get("role") == "img" and a["aria-label"]) for a in drawings)
    assert page.count("caption") == page.count("table") == 2
    assert NOTE in page.text
    assert NOTE not in render_sweep(replace(fake(), embedded=False))


def test_hostile_text_is_inert() -> None:
    data = fake()
    first, *others = data.points
    points = [
        replace(first, fields={**first.fields, "hierarchy.groups": HOSTILE}),
        *(replace(p, fields={**p.fields, "hierarchy.groups": [HOSTILE]}) for p in others[:4]),
        ended(others[4], "failed", reason=HOSTILE),
        *others[5:],
    ]
    names = ["tuning.lr", "hierarchy.groups", HOSTILE]
    for point in points:
        point.fields[HOSTILE] = '" onload="alert(1)'
    assert data.compared is not None
    page = Page(
        render_sweep(
            replace(
                data,
                **dict.fromkeys(("name", "asha", "vlm", "config_yaml", "best_yaml"), HOSTILE),
                objective=HOSTILE,
                axes=names,
                points=points,
                compared=replace(data.compared, where=HOSTILE),
            )
        )
    )
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("alert(1)") > 20


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ((1.8, 0.7, 2.9), "a difference of +1.8 (95 % interval +0.7 to +2.9)."),
        ((0.4, -0.5, 1.3), "This is no clear gain: the interval includes zero, so it may be "),
        ((-0.9, -1.5, -0.3), "It does worse there than the default, so keep the default."),
    ],
)
def test_the_lead_says_how_sure_it_is(difference: tuple[float, float, float], said: str) -> None:
    data = fake()
    assert data.compared is not None
    data = replace(data, compared=replace(data.compared, difference=difference))
    sentence = lead(data)
    assert sentence.startswith(f"Of 30 points, point {data.best} (tuning.lr = 0.0")
    assert f"On {SCENES} it reaches 64.1 mAP and the default 62.3" in sentence
    assert said in sentence
    assert sentence in Page(render_sweep(data)).text


def test_the_lead_where_nothing_is_better_or_nothing_was_measured() -> None:
    data = fake()
    at_default = replace(data, best=0)
    assert "none is better than the default (the config as written)" in lead(at_default)
    page = Page(render_sweep(at_default))
    assert "is the artifact of the default: its tuned prompts" in page.text
    assert "paste them" not in page.text
    assert "0 ★ best ☐ default" in [row[0] for row in page.tables[-1]]
    unmeasured = replace(data, compared=None)
    assert lead(unmeasured).endswith("there were no images to compare it with the default on.")
    of_default = ended(data.points[0], "failed")
    failed = replace(unmeasured, points=[of_default, *data.points[1:]])
    assert lead(failed).endswith("How much it gains is not known: the default could not be tuned.")
    assert "Measured" not in Page(render_sweep(unmeasured)).text


def test_the_page_warns_where_few_points_finished() -> None:
    data = fake()
    failed = [ended(point, "failed") for point in data.points[1:]]
    mostly = replace(data, best=0, points=[data.points[0], *failed])
    assert "Most points failed: 29 of 30 points" in Page(render_sweep(mostly)).text
    stopped = data.count("stopped")
    assert 2 * (stopped + 1) > 30
    assert f"of 30 points, {stopped} were stopped early and 1 failed" in caution(data)
    assert caution(fake(asha=False)) == ""
    nothing = replace(data, best=0, compared=None, points=failed)
    assert "None of the 29 points finished" in (text := Page(render_sweep(nothing)).text)
    assert "artifact" not in text


def test_the_table_ranks_finished_points_and_gives_reasons_in_full() -> None:
    data = fake()
    head, *rows = Page(render_sweep(data)).tables[-1]
    assert head[:4] == ["Point", "Rank", "mAP", "Text"]
    assert head[-3:] == ["Epochs", "Time", "Status"]
    done = len(data.finished)
    assert [row[1] for row in rows] == [*map(str, range(1, done + 1)), *["–"] * (30 - done)]
    figures = [float(row[2].split(" ± ")[0]) for row in rows[:done]]
    assert figures == sorted(figures, reverse=True)
    assert rows[0][0] == f"{data.best} ★ best"
    of = {row[0]: row for row in rows}
    assert of["0 ☐ default"][4:7] == ["0.002", "auto", "3"]
    assert of["5"][-1] == "failed: CUDA out of memory: tried to get 2.00 GiB"
    stopped = next(point for point in data.points if point.status == "stopped")
    last = fmean(curve[-1] for curve in stopped.curves)
    assert of[str(stopped.number)][2] == f"({last:.1f})"


def test_what_sorts_is_the_number_not_its_text() -> None:
    html = render_sweep(fake())
    best = fake().finished[0]
    assert f'data-value="{best.level}">' in html
    assert f'data-value="{best.seconds}">2 min 31 s' in html
    assert "dataset.value ?? " in html


@pytest.mark.parametrize("points", [1, 2, 12, 200])
@pytest.mark.parametrize("axes", [1, 8])
def test_sizes(points: int, axes: int) -> None:
    data = fake(points, axes)
    html = render_sweep(data)
    page = Page(html)
    assert len(page.tables[-1]) == points + 1
    assert not re.search(r"\bnan\b|\binf\b", html)
    chart = learning_chart(data)
    assert chart is not None
    assert len(chart.lines) == 3 * (points - data.count("failed"))


def test_stops_are_counted_by_epoch_and_so_are_saved_epochs() -> None:
    data = fake()
    early = sum(point.epochs == 2 for point in data.points)
    assert stops(data) == (
        f"ASHA stopped {data.count('stopped')} of 30 points: {early} after epoch 2, "
        f"{data.count('stopped') - early} after epoch 6."
    )
    assert stops(fake(asha=False)) == "No point was stopped early."
    spared = sum(12 - point.epochs for point in data.points if point.status == "stopped")
    assert saved(data) == pytest.approx(spared / (30 * 12))
    text = Page(render_sweep(data)).text
    assert f"{100 * spared / 360:.0f} % of the epochs were not tuned" in text
    assert "83 % of the wall time" in text


def test_stopped_lines_end_where_they_were_stopped() -> None:
    data = fake()
    failed = ended(data.points[5], "failed", [[60.0, 61.0]])
    data = replace(data, points=[*data.points[:5], failed, *data.points[6:]])
    chart = learning_chart(data)
    assert chart is not None
    assert len(chart.lines) == 3 * 29
    ends = {
        style: {points.split()[-1].split(",")[0] for at, points, _ in chart.lines if at == style}
        for style in ("l-stopped", "l-finished")
    }
    assert len(ends["l-stopped"]) == 2
    assert len(ends["l-finished"]) == 1
    assert max(map(float, ends["l-stopped"])) < min(map(float, ends["l-finished"]))
    assert chart.lines[-1][0] == "l-best", "drawn last"
    assert {mark.style for mark in chart.marks} == {"m-stopped", "m-default", "m-best"}


def test_a_few_hopeless_points_do_not_squash_the_learning_curves() -> None:
    data = fake(asha=False)
    hopeless = ended(data.points[7], "finished", [[3.0] * 4] * 3)
    points = [*data.points[:7], hopeless, *data.points[8:]]
    chart = learning_chart(replace(data, points=points))
    assert chart is not None
    assert min(float(text) for _, text in chart.y_ticks) > 40


def correlated(text: list[float], images: list[float]) -> str:
    """The verdict on points with these figures on text and images."""
    points = [
        PointResult(i, {"a": i}, {0: Outcome("finished", [entry])}, 1, on_images=True)
        for i, entry in enumerate(
            {"epoch": 1.0, "held_out_loss": 1.0, "held_out_map": x, "selecting_map": y}
            for x, y in zip(text, images, strict=True)
        )
    ]
    return text_verdict(replace(fake(), axes=["a"], points=points, best=0))


def test_the_page_says_how_well_text_predicts_images() -> None:
    rising = [float(i) for i in range(10)]
    assert "correlation is 1.00 over 10 points: text ranks the settings much as" in correlated(
        rising, rising
    )
    assert "have chosen point 9, the best on text; on the images it is the best too" in correlated(
        rising, rising
    )
    backwards = correlated(rising, rising[::-1])
    assert "is −1.00 over 10 points: text ranks the settings the wrong way round" in backwards
    assert "on the images it has rank 10 of 10, 9.0 mAP below the best" in backwards
    assert "may be chance" in correlated([1, 2, 3, 4], [2, 1, 4, 3])
    assert "the 3 points are all alike" in correlated([1, 1, 1], [1, 2, 3])
    assert "the 2 points are too few to rank" in correlated([1, 2], [1, 2])


def test_without_images_nothing_is_said_about_them() -> None:
    data = fake(images=False)
    page = Page(render_sweep(data))
    assert scatter_chart(data) is None
    assert "text" not in page.ids()
    assert "Text" not in page.tables[-1][0]


def test_curves_that_are_not_finite_and_a_default_that_was_stopped() -> None:
    data = fake()
    diverged = ended(data.points[1], "stopped", [[50.0, math.nan], [math.nan]])
    default = ended(data.points[0], "stopped")
    html = render_sweep(replace(data, points=[default, diverged, *data.points[2:]]))
    page = Page(html)
    assert not re.search(r"\bnan\b", html)
    assert {row[0]: row[1] for row in page.tables[-1]}["0 ☐ default"] == "–"
    assert [row[1] for row in page.tables[0][2:]] == ["–", "–"]
