"""The page of a sweep: what it says and draws, that it loads nothing and that text stays text."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from test_run_page import HOSTILE, NOTE, Page

from orchestrator.pages.run_page import FRAME
from orchestrator.pages.sweep_drawings import (
    axis,
    heights,
    heights_of_curves,
    learning,
    parallel,
    plots,
    scatter,
    spread_out,
)
from orchestrator.pages.sweep_page import render_sweep
from orchestrator.pages.sweep_words import caution, lead, saved, stops
from orchestrator.sweep.swept_points import Compared, SweepData, SweptPoint, word

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
SCENES = "200 composed scenes (not the 200 that selected)"


def fake(points: int = 30, axes: int = 3, halving: bool = True, images: bool = True) -> SweepData:
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
        elif halving and number and reached < 61 + draw.gauss(0, 1):
            status, epochs = "stopped", draw.choice([2, 2, 2, 6])
        curves = [
            [reached - 12 * math.exp(-e / 3) + draw.gauss(0, 0.2) for e in range(1, epochs + 1)]
            for _ in range(3 if epochs else 0)
        ]
        objective = [curve[-1] for curve in curves] if status == "finished" else []
        swept.append(
            SweptPoint(
                number=number,
                fields=fields,
                status=status,
                reason=reason,
                epochs=epochs,
                objective=objective,
                text_map=[90 + (v - 64) / 2 + draw.gauss(0, 0.4) for v in objective],
                selecting_map=objective if images else [],
                curves=curves,
                seconds=epochs * 3 * 4.2,
            )
        )
    done = [point for point in swept if point.finished]
    best = max(done, key=lambda point: (sum(point.objective), -point.number))
    return SweepData(
        name="quickstart-sweep",
        axes=names,
        log_axes=["tuning.lr"],
        objective="mAP on the half of the images that selects"
        if images
        else "mAP on held-out captions",
        points=swept,
        best=best.number,
        compared=Compared(64.1, 62.3, (1.8, 0.7, 2.9), (61.9, 66.2), (60.2, 64.4), SCENES),
        epochs=12,
        halving="ASHA, a third goes on after 2 and 6 epochs" if halving else "",
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


def test_every_section_is_there_and_it_loads_nothing() -> None:
    html = render_sweep(fake())
    page = Page(html)
    assert not page.open, "unclosed elements"
    sections = [str(attrs["id"]) for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        *("result", "fields", "together", "learning", "text", "points", "cost", "setup")
    ]
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
        replace(others[4], reason=HOSTILE),
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
                **dict.fromkeys(("name", "halving", "vlm", "config_yaml", "best_yaml"), HOSTILE),
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
def test_the_lead_is_told_with_its_doubt(difference: tuple[float, float, float], said: str) -> None:
    data = fake()
    assert data.compared is not None
    data = replace(data, compared=replace(data.compared, difference=difference))
    told = lead(data)
    assert told.startswith(f"Of 30 points, point {data.best} (tuning.lr = 0.0")
    assert f"On {SCENES} it reaches 64.1 mAP and the default 62.3" in told
    assert said in told
    assert told in Page(render_sweep(data)).text


def test_the_lead_where_nothing_is_better_or_nothing_was_measured() -> None:
    data = fake()
    at_default = replace(data, best=0)
    assert "none is better than the default, the config as written" in lead(at_default)
    page = Page(render_sweep(at_default))
    assert "the tuned prompts of the default" in page.text
    assert "paste them" not in page.text
    assert "0 ★ best ☐ default" in [row[0] for row in page.tables[-1]]
    unmeasured = replace(data, compared=None)
    assert lead(unmeasured).endswith("there were no images to compare it with the default on.")
    of_default = replace(data.points[0], status="failed", objective=[])
    failed = replace(unmeasured, points=[of_default, *data.points[1:]])
    assert lead(failed).endswith("How much it gains is not known: the default could not be tuned.")
    assert "What did not" not in Page(render_sweep(unmeasured)).text


def test_few_finished_points_are_told() -> None:
    data = fake()
    failed = [replace(point, status="failed", objective=[]) for point in data.points[1:]]
    mostly = replace(data, best=0, points=[data.points[0], *failed])
    assert "Most points failed: 29 of 30 points" in Page(render_sweep(mostly)).text
    stopped = data.count("stopped")
    assert stopped > 15
    assert f"of 30 points, {stopped} were stopped early and 1 failed" in caution(data)
    assert caution(fake(halving=False)) == ""
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
    if len(data.finished) > 1:
        lines = [a for tag, a in page.tags if tag == "polyline-part" and "l-fifth" in str(a)]
        assert len(lines) == sum(data.role(p) == "finished" for p in data.finished)
        assert len(str(lines[0]["points"]).split()) == axes + 1 if lines else True
    for drawing in plots(data, heights(data, room=3)):
        assert all(FRAME["left"] <= mark.x <= FRAME["right"] for mark in drawing.marks)
        assert all(FRAME["top"] <= mark.y <= FRAME["bottom"] for mark in drawing.marks)


def test_best_default_and_stopped_are_marked_in_every_plot() -> None:
    data = fake()
    for drawing in plots(data, heights(data, room=3)):
        roles = [mark.role for mark in drawing.marks]
        assert roles.count("best") == roles.count("default") == 1
        assert roles[-1] == "best", "drawn last"
        assert roles.count("stopped") + roles.count("below") == data.count("stopped")
        assert len(roles) == 29, "the failed one has no figure"
        best = drawing.marks[-1]
        assert best.whisker is not None
        assert best.whisker[0] >= best.y >= best.whisker[1]
        assert best.y == min(mark.y for mark in drawing.marks)


def test_a_few_hopeless_points_do_not_squash_the_rest() -> None:
    data = fake(halving=False)
    hopeless = replace(data.points[7], objective=[3.0, 4.0, 5.0])
    points = [*data.points[:7], hopeless, *data.points[8:]]
    shown = heights(replace(data, points=points), room=3)
    assert shown.low > 20
    marks = plots(replace(data, points=points), shown)[0].marks
    assert [mark.label for mark in marks if mark.role == "below"] == [
        next(mark.label for mark in marks if mark.label.startswith("Point 7 "))
    ]
    assert "1 point lies below the range" in Page(render_sweep(replace(data, points=points))).text


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    line = axis({0: 1e-4, 1: 1e-3, 2: 1e-2, 3: 0.0}, logarithmic=True)
    assert line.at[1] - line.at[0] == pytest.approx(line.at[2] - line.at[1])
    assert line.at[3] < line.at[0], "zero has no logarithm and stands in a column"
    assert [label for _, label in line.ticks] == [
        *("0", "0.0001", "0.0003", "0.001", "0.003", "0.01")
    ]
    even = axis({0: 1, 1: 2, 2: 3}, logarithmic=False)
    assert even.at[1] == pytest.approx((even.at[0] + even.at[2]) / 2)


def test_words_stand_in_columns_before_the_numbers() -> None:
    line = axis({0: "auto", 1: None, 2: True, 3: 8, 4: 16}, logarithmic=False)
    assert [label for _, label in line.ticks[: line.columns]] == ["auto", "null", "true"]
    assert max(line.at[n] for n in (0, 1, 2)) < line.at[3] < line.at[4]
    same = spread_out({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.9}, most=0.1)
    assert same[0] == 0.5
    assert len(set(same.values())) == 4
    assert all(abs(same[n] - 0.5) <= 0.1 for n in range(3))
    assert same == spread_out({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.9}, most=0.1)


def test_labels_that_do_not_fit_are_letters_with_a_legend() -> None:
    data = fake(60, 8)
    drawing = plots(data, heights(data, room=3))[6]
    assert [label for _, label in drawing.x_ticks] == ["A", "B"]
    assert dict(drawing.letters)["A"] == "[shared, coarse, fine, category]"
    assert "A [shared, coarse, fine, category]" in Page(render_sweep(data)).text


def test_values_are_written_as_in_a_config() -> None:
    values = [0.000012345, 1e-05, 20.0, 3, True, None, "auto", [4, 8], {"std": 0.1}, [[1], ["a"]]]
    assert [word(value) for value in values] == [
        *("1.234e-5", "1e-5", "20", "3", "true", "null", "auto", "[4, 8]", "{std: 0.1}"),
        "[[1], [a]]",
    ]


def test_the_best_line_ends_highest_and_colours_follow_the_rank() -> None:
    drawn = parallel(fake(60, 3))
    assert [path.role for path in drawn.paths[-2:]] == ["default", "best"]
    ends = [path.end[1] for path in drawn.paths if path.role == "finished"]
    assert ends == sorted(ends, reverse=True), "the worst is drawn first"
    fifths = [path.fifth for path in drawn.paths if path.role == "finished"]
    assert fifths == sorted(fifths)
    assert set(fifths) == {0, 1, 2, 3, 4}


def test_stops_are_counted_by_epoch_and_saved_epochs_told() -> None:
    data = fake()
    early = sum(point.epochs == 2 for point in data.points)
    assert stops(data) == (
        f"ASHA stopped {data.count('stopped')} of 30 points: {early} after epoch 2, "
        f"{data.count('stopped') - early} after epoch 6."
    )
    assert stops(fake(halving=False)) == "No point was stopped early."
    spared = sum(12 - point.epochs for point in data.points if point.status == "stopped")
    assert saved(data) == pytest.approx(spared / (30 * 12))
    text = Page(render_sweep(data)).text
    assert f"{100 * spared / 360:.0f} % of the epochs were not tuned" in text
    assert "83 % of the wall time" in text


def test_stopped_lines_end_where_they_were_stopped() -> None:
    data = fake()
    failed = replace(data.points[5], curves=[[60.0, 61.0]])
    data = replace(data, points=[*data.points[:5], failed, *data.points[6:]])
    shown = heights(data, room=3)
    paths = learning(data, heights_of_curves(data, shown))
    assert len(paths) == 3 * 29
    at = {path.end[0] for path in paths if path.role == "stopped"}
    finished = {path.end[0] for path in paths if path.role == "finished"}
    assert len(at) == 2
    assert len(finished) == 1
    assert max(at) < min(finished)
    one = replace(data.points[1], status="stopped", objective=[], epochs=1, curves=[[50.0]])
    (path,) = learning(replace(data, points=[one]), shown)
    assert len(path.points.split()) == 2, "a single epoch is a dot"


def correlated(text: list[float], images: list[float]) -> str:
    """The words about points with these figures on text and images."""
    points = [
        SweptPoint(i, {"a": i}, "finished", "", 2, [y], [x], [y], [[y, y]], 1.0)
        for i, (x, y) in enumerate(zip(text, images, strict=True))
    ]
    drawn = scatter(replace(fake(), axes=["a"], log_axes=[], points=points, best=0))
    assert drawn is not None
    return drawn.words


def test_how_text_predicts_images_is_told() -> None:
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
    assert scatter(data) is None
    assert "text" not in page.ids()
    assert "Text" not in page.tables[-1][0]


def test_curves_that_are_not_finite_and_a_default_that_was_stopped() -> None:
    data = fake()
    diverged = replace(
        data.points[1], status="stopped", objective=[], curves=[[50.0, math.nan], [math.nan]]
    )
    default = replace(data.points[0], status="stopped", objective=[], text_map=[])
    html = render_sweep(replace(data, points=[default, diverged, *data.points[2:]]))
    page = Page(html)
    assert not re.search(r"\bnan\b", html)
    assert {row[0]: row[1] for row in page.tables[-1]}["0 ☐ default"] == "–"
    assert [row[1] for row in page.tables[0][2:]] == ["–", "–"]
