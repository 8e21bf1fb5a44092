"""The evaluation page: what it says, that it loads nothing, and that hostile text stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from test_run_page import HOSTILE, NOTE, UNTUNED, Page, fake, jpeg, names

from orchestrator.pages.evaluation_page import (
    EvaluationData,
    Mistake,
    changes,
    curve_charts,
    lead,
    render_evaluation,
)
from orchestrator.pages.metrics_summary import class_rows


def evaluated(classes: int = 44, tuned: float = 63.1) -> EvaluationData:
    """A plausible evaluation; nothing shows the last class."""
    metrics = fake(classes, seeds=3, tuned=tuned).metrics
    assert metrics is not None
    *shown, last = metrics["ap"]["tuned"]
    for by_branch in metrics["ap"].values():
        by_branch[last] = None
    fused = {method: row["fused"] for method, row in metrics["map"].items()}
    intervals = {method: [score - 2, score + 2] for method, score in fused.items()}
    for method in UNTUNED:
        gap = tuned - fused[method]
        intervals[f"tuned - {method}"] = [gap - 1.5, gap + 1.5]
    rates = {"precision": 41.0, "recall": 82.5, "f1": 54.8}
    metrics |= {
        "dataset": "voc2007",
        "images": 4952,
        "ci": intervals,
        "map_11_points": {method: score - 0.5 for method, score in fused.items()},
        "positives": {**dict.fromkeys(shown, 1234), last: 0},
        "f1_at_top_k": {"k": 3, "tuned": {"micro": rates, "macro": {**rates, "f1": 51.2}}},
        "coverage_error": {"tuned": 4.25},
        "calibration": {
            "ece": 2.34,
            "at_thresholds": {"micro": {**rates, "f1": 55.5}, "macro": rates},
            "best_f1": {"micro": 66.6, "macro": 61.0},
        },
    }
    falling = [(i / 9, 1 - i / 15) for i in range(10)]
    return EvaluationData(
        run="my-run",
        vlm="embedded efficientnet-lite2+minilm",
        embedded=True,
        metrics=metrics,
        curves={name: (falling, [(r, p / 2) for r, p in falling]) for name in shown},
        mistakes=[
            Mistake(jpeg(i), name, 3.2 - i / 10, shown[i + 1 : i + i])
            for i, name in enumerate(shown[:8])
        ],
    )


def test_the_evaluation_page_has_its_sections_and_loads_nothing() -> None:
    html = render_evaluation(evaluated())
    page = Page(html)
    assert not page.open
    sections = [str(attrs["id"]) for tag, attrs in page.tags if tag == "section"]
    assert sections == ["result", "classes", "changes", "curves", "mistakes", "protocol"]
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#" + s for s in sections]
    assert len(page.ids()) == len(set(page.ids()))
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 8
    assert all(str(i["src"]).startswith("data:image/jpeg;base64,") and i["alt"] for i in images)
    assert not re.search(r"https?://|@import|url\(", html)
    assert page.count("caption") == page.count("table")
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all("aria-hidden" in a or (a.get("role") == "img" and a["aria-label"]) for a in drawings)
    assert NOTE in page.text
    assert "average precision all points" in page.text  # the protocol


def test_figures_of_the_evaluation_page() -> None:
    page = Page(render_evaluation(evaluated()))
    methods = {row[0]: row[1:] for row in page.tables[0]}
    assert methods["caption_average"] == [
        *("59.5", "56.2", "60.7", "58.7 to 62.7"),
        *("+2.4 +0.9 to +3.9", "60.2"),
    ]
    assert methods["tuned"][-3:] == ["61.1 to 65.1", "", "62.6"]
    assert page.tables[1][1:] == [
        ["micro", "41.0", "82.5", "54.8"],
        ["macro", "41.0", "82.5", "51.2"],
    ]
    assert "the 4.2 best tags of an image, on average, to include all its labels" in page.text
    assert "off by 2.3 points on average" in page.text
    assert page.tables[2][1:] == [
        ["micro", "41.0", "82.5", "55.5", "66.6"],
        ["macro", "41.0", "82.5", "54.8", "61.0"],
    ]
    classes = page.tables[3]
    assert classes[0][:5] == ["Class", "Tuned", "Untuned", "Diff.", "Positives"]
    assert float(classes[1][1]) <= float(classes[2][1])
    assert classes[1][4] == "1,234"
    assert classes[-1][1:5] == ["–", "–", "–", "0"]
    assert len(classes) == 45
    assert "1 class has no positive image" in page.text


def test_hostile_text_is_inert_in_an_evaluation() -> None:
    data = evaluated()
    for by_class in (*data.metrics["ap"].values(), data.metrics["positives"]):
        by_class[HOSTILE] = 1
    data.metrics["protocol"][HOSTILE] = HOSTILE
    data.metrics["against"] = {
        "run": HOSTILE,
        "classes": 2,
        "map": {"this": 50.0, "other": 48.0},
        "difference": {"mean": 2.0, "low": -1.0, "high": 5.0},
    }
    curves = {**data.curves, HOSTILE: next(iter(data.curves.values()))}
    mistakes = [Mistake(jpeg(0), HOSTILE, 2.0, [HOSTILE, '" onerror="alert(1)'])]
    page = Page(
        render_evaluation(replace(data, run=HOSTILE, curves=curves, mistakes=mistakes, vlm=HOSTILE))
    )
    assert page.count("script") == page.count("img") == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("alert(1)") > 8
    assert (
        "50.0 and 48.0 mAP (tuned, fused), a difference of +2.0 (95 % interval −1.0 to +5.0)"
        in (page.text)
    )


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (63.1, "a difference of +2.4 (95 % interval +0.9 to +3.9)."),
        (61.7, "(95 % interval −0.5 to +2.5). The interval includes zero, so this may be chance."),
        (58.1, "a difference of −2.6 (95 % interval −4.1 to −1.1). Tuning lowered the mAP here."),
    ],
)
def test_the_lead_says_how_sure_it_is(tuned: float, said: str) -> None:
    sentence = lead(evaluated(tuned=tuned).metrics)
    assert sentence.startswith(
        f"On 4,952 images of voc2007, the prompts tuned on text alone reach {tuned} mAP "
        "(mean of 3 seeds), and the best baseline (caption_average) 60.7: "
    )
    assert sentence.endswith(said)


def test_changes_are_against_zero_shot_and_largest_first() -> None:
    labels = names(30)
    before: dict[str, float | None] = dict.fromkeys(labels, 50.0)
    after = {name: 50.0 + i - 15 for i, name in enumerate(labels)}
    better = dict.fromkeys(labels, 90.0)
    ap = {"zero_shot": before, "templates": better, "tuned": {**after, "unseen": None}}
    gained, lost = changes(ap)
    assert [row.name for row in gained] == labels[:19:-1]
    assert [row.name for row in lost] == labels[:10]
    assert (gained[0].difference, lost[0].difference) == (14.0, -15.0)


@pytest.mark.parametrize("classes", [2, 30, 200])
def test_curves_of_the_weakest_the_most_improved_and_the_rest(classes: int) -> None:
    data = evaluated(classes)
    rows = class_rows(data.metrics["ap"], "caption_average")
    weakest, improved, rest = curve_charts(rows, data.curves)
    order = [row.name for row in rows]
    assert [chart.row.name for chart in weakest] == order[: min(12, classes - 1)]
    assert len(improved) <= 12
    gains = [chart.row.difference or 0.0 for chart in improved]
    assert gains == sorted(gains, reverse=True)
    if rest and len(improved) == 12:
        assert gains[-1] >= max(chart.row.difference or 0.0 for chart in rest)
    shown = [chart.row.name for chart in (*weakest, *improved, *rest)]
    assert sorted(shown) == sorted(data.curves)
    page = Page(render_evaluation(data))
    assert sum(attrs.get("class") == "chart" for _, attrs in page.tags) == classes - 1
    assert page.count("details") == bool(rest)


def test_a_curve_goes_down_from_the_upper_left() -> None:
    rows = class_rows({"tuned": {"dog": 50.0}}, None)
    ((chart,), _, _) = curve_charts(rows, {"dog": ([(0.25, 1.0), (1.0, 0.5)], [(1.0, 0.25)])})
    assert chart.tuned == "0.0,0.0 25.0,0.0 100.0,50.0"
    assert chart.untuned == "0.0,75.0 100.0,75.0"
