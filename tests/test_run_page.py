"""The run report: what it says, that it loads nothing, and that strangers' text stays text."""

from __future__ import annotations

import io
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
import yaml
from PIL import Image

from orchestrator.pages.evaluation_page import (
    EvaluationData,
    Mistake,
    changes,
    curve_charts,
    lead,
    render_evaluation,
)
from orchestrator.pages.run_page import (
    Example,
    ReportData,
    class_rows,
    curves,
    duration,
    fixed,
    local_caveat,
    render,
    signed,
    ticks,
)
from prompt_tuning.categories import built_in_text

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'
UNTUNED = ("zero_shot", "templates", "synonym_average", "caption_average")
NOTE = "embedded one, not CLIP: its image side was trained on ImageNet labels."


def names(count: int) -> list[str]:
    """Category names: the built-in scenes', then made-up ones."""
    known = [c["name"] for c in yaml.safe_load(built_in_text("scenes"))["categories"]]
    return [*known, *(f"category {i}" for i in range(len(known), count))][:count]


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (40 * seed % 256, 90, 160)).save(file, "JPEG")
    return file.getvalue()


def fake(classes: int = 44, seeds: int = 3, tuned: float = 63.1) -> ReportData:
    """A plausible run on composed scenes."""
    draw = random.Random(classes)
    labels = names(classes)
    untuned = dict(zip(UNTUNED, (55.2, 56.9, 58.3, 60.7), strict=True))
    methods = {**untuned, "tuned": tuned}
    hardness = {name: draw.uniform(-30, 30) for name in labels}
    ap: dict[str, dict[str, float | None]] = {
        method: {n: min(99.0, max(3.0, score + hardness[n] + draw.gauss(0, 5))) for n in labels}
        for method, score in methods.items()
    }
    groups = [labels[i : i + 3] for i in range(0, classes, 3)]
    fine = [{"name": f"{group[0]} and the like", "categories": group} for group in groups]
    return ReportData(
        name="quickstart",
        config_yaml="name: quickstart\nseeds: [0, 1, 2]\ntuning: {epochs: 12, lr: 0.002}\n",
        vlm="embedded efficientnet-lite2+minilm",
        embedded=True,
        stages=[
            {"stage": "knowledge", "key": "ab12cd34ef56", "seconds": 0.0, "cached": True},
            {"stage": "captions", "key": "09f1aa7712bc", "seconds": 0.42, "cached": False},
            {"stage": "caption_features", "key": "77aa01b2c3d4", "seconds": 12.8, "cached": False},
            {"stage": "tuning", "key": "5b5be1a0c9d8", "seconds": 214.0, "cached": False},
            {"stage": "evaluation", "key": "d00dfeed1234", "seconds": 61.0, "cached": False},
        ],
        versions={"datafree": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "vllm": "0.32.0"},
        metrics={
            "dataset": "scenes",
            "images": 400,
            "protocol": {"average precision": "all points", "difficult": "ignored", "size": 384},
            "chance_map": 6.04,
            "map": {
                a: {"global": s - 1.25, "local": s - 4.5, "fused": s} for a, s in methods.items()
            },
            "map_by_seed": {"tuned": {"fused": [tuned + d for d in (-0.7, 0, 0.7)][-seeds:]}},
            "ci": {"tuned": [tuned - 2, tuned + 2]},
            "ap": ap,
        },
        held_out=None,
        histories={seed: history(draw) for seed in range(seeds)},
        hierarchy=[
            {"name": f"coarse {i // 3 + 1}", "fine": fine[i : i + 3]}
            for i in range(0, len(fine), 3)
        ],
        examples=[
            Example(
                jpeg(i),
                draw.sample(labels, min(classes, 3)),
                [(name, draw.random()) for name in draw.sample(labels, min(classes, 4))],
            )
            for i in range(12)
        ],
        knowledge={
            "model": "gemma3-270m",
            "asked": {"attributes": 40, "per_category": 1100, "relationships": 1400},
            "kept": {"per_category": 592, "relationships": 820},
            "dropped": {"no category named": 611, "near-duplicate": 342, "leaked example": 175},
            "captions_per_category": {name: draw.randint(12, 110) for name in labels},
            "attributes": ["colour", "size", "material", "place", "shape", "number of legs"],
            "samples": [
                {
                    "text": f"A {a} and a {b} are seen together near the old stone wall.",
                    "labels": [a, b],
                    "kind": "relationships",
                }
                for a, b in zip(labels[:6:2], labels[1:6:2], strict=False)
            ],
            "tokens": 48_211,
            "seconds": 242.0,
        },
    )


def history(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 4 * math.exp(-epoch / 4) + draw.uniform(1.0, 1.1),
            "held_out_loss": 4 * math.exp(-epoch / 5) + draw.uniform(1.3, 1.5),
            "held_out_map": 91 - 20 * math.exp(-epoch / 3) + draw.uniform(-0.4, 0.4),
        }
        for epoch in range(1, 13)
    ]


class Page(HTMLParser):
    """Reads the report back: the start tags, the cells of each table, all visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())
        self.tables = [[[" ".join(c.split()) for c in row] for row in t] for t in self.tables]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = "svg" in self.open
        self.tags.append((f"{tag}-part" if inside else tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "base", "br", "input"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes the wrong element"

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(fake()))


def test_every_section_is_there_in_order(page: Page) -> None:
    sections = [str(attrs["id"]) for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        *("result", "classes", "training", "groups"),
        *("images", "knowledge", "time", "setup"),
    ]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["#" + section for section in sections]
    assert len(page.ids()) == len(set(page.ids()))
    assert not page.open, "unclosed elements"


def test_it_loads_nothing(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 12
    assert all(str(i["src"]).startswith("data:image/jpeg;base64,") and i["alt"] for i in images)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "object", "embed", "base", "video", "audio", "use"}
    html = render(fake())
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert all("src" not in attrs for tag, attrs in page.tags if tag == "script")
    policy = next(
        attrs["content"] for t, attrs in page.tags if t == "meta" and "http-equiv" in attrs
    )
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_charts_and_tables_are_labelled(page: Page) -> None:
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all("aria-hidden" in a or (a.get("role") == "img" and a["aria-label"]) for a in drawings)
    assert page.count("caption") == page.count("table")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))


def test_figures_of_the_map_table(page: Page) -> None:
    rows = {row[0]: row[1:4] for row in page.tables[0]}
    assert list(rows) == ["Method", *UNTUNED, "tuned", "chance"]
    assert rows["caption_average"] == ["59.5", "56.2", "60.7"]
    assert rows["tuned"] == ["★ 61.9", "★ 58.6", "★ 63.1 ± 0.7"]
    assert rows["chance"] == ["6.0"] * 3
    assert "62.4 · 63.1 · 63.8" in page.text
    assert "tuned 61.1 to 65.1" in page.text


def test_class_table_is_weakest_first_with_the_best_baseline() -> None:
    data = fake()
    assert data.metrics is not None
    data.metrics["ap"]["tuned"]["lion"] = None
    data.metrics["ap"]["tuned"]["dog"] = 1.0
    data.metrics["ap"]["caption_average"]["dog"] = 2.5
    page = Page(render(data))
    table = page.tables[1]
    assert table[1][:4] == ["dog", "1.0", "2.5", "−1.5"]
    assert table[-1][:2] == ["lion", "–"]
    assert "Weakest after tuning: dog (1.0)" in page.text
    assert "1 class has no positive image" in page.text


def test_class_rows_without_a_baseline() -> None:
    rows = class_rows({"tuned": {"a": 5.0, "b": None, "c": 0.0}}, None)
    assert [(row.name, row.difference) for row in rows] == [("c", None), ("a", None), ("b", None)]


def test_summary_and_note(page: Page) -> None:
    assert (
        "Prompts tuned on 1,412 sentences written by gemma3-270m reach 63.1 mAP on 400 composed "
        "scenes (mean of 3 seeds), 2.4 above the best baseline (caption_average, 60.7)."
    ) in page.text
    assert NOTE in page.text
    assert NOTE not in render(replace(fake(), embedded=False))


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (58.9, "tuning did not help, as this is 1.8 below the best baseline (caption_average, "),
        (60.71, "tuning did not help, as the best baseline (caption_average, 60.7) reaches the"),
        (61.0, "0.3 above the best baseline (caption_average, 60.7), a lead within the spread"),
    ],
)
def test_summary_is_honest(tuned: float, said: str) -> None:
    assert said in Page(render(fake(tuned=tuned))).text


def test_hostile_text_is_inert() -> None:
    clean, data = Page(render(fake())), fake()
    assert data.metrics is not None
    for scores in data.metrics["ap"].values():
        scores[HOSTILE] = 50.0
    data.metrics["protocol"][HOSTILE] = HOSTILE
    data.hierarchy[0]["name"] = HOSTILE
    data.hierarchy[0]["fine"][0]["categories"][0] = HOSTILE
    data.knowledge["samples"][0] |= {"text": HOSTILE, "labels": [HOSTILE, '" onload="alert(1)']}
    data.knowledge["attributes"].append(HOSTILE)
    data.knowledge["dropped"][HOSTILE] = 3
    data = replace(data, name=HOSTILE, config_yaml=HOSTILE + "</code></pre>", vlm=HOSTILE)
    data.examples[0] = Example(jpeg(0), [HOSTILE, '" onerror="alert(1)'], [(HOSTILE, 0.5)])
    page = Page(render(data))
    assert page.count("script") == clean.count("script") == 1
    assert page.count("img") == clean.count("img")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("alert(1)") > 8, "it is shown, as text"


def test_examples_tell_hits_misses_and_false_alarms_apart_in_words() -> None:
    example = Example(jpeg(1), ["dog", "cat"], [("dog", 0.9), ("bus", 0.25)])
    assert example.tags == [("hit", "dog", 0.9), ("false", "bus", 0.25), ("miss", "cat", None)]
    text = Page(render(replace(fake(), examples=[example]))).text
    assert "✓ hit: dog 0.90" in text
    assert "✗ false alarm: bus 0.25" in text
    assert "○ missed: cat" in text


def test_notes_stand_above_the_figures() -> None:
    page = Page(render(replace(fake(), notes=["No caption shows cow.", HOSTILE])))
    assert page.text.index("No caption shows cow.") < page.text.index("Tuned, mAP")
    assert page.count("script") == 1


def test_without_images() -> None:
    scores = {"caption_average": 90.2, "tuned": 93.4}
    page = Page(render(replace(fake(), metrics=None, held_out=scores, examples=[])))
    assert "There were no images in this run" in page.text
    assert "reach 93.4 mAP on held-out sentences" in page.text
    rows = [row[:2] for row in page.tables[0][1:]]
    assert rows == [["caption_average", "90.2"], ["tuned", "★ 93.4"]]
    assert not {"classes", "images"} & set(page.ids())


@pytest.mark.parametrize("classes", [2, 80, 200])
@pytest.mark.parametrize("seeds", [1, 5])
def test_sizes(classes: int, seeds: int) -> None:
    page = Page(render(fake(classes=classes, seeds=seeds)))
    assert len(page.tables[1]) == classes + 1
    assert ("mean of" in page.text) == (seeds > 1)
    assert "nan" not in page.text.lower().split()


def test_bare_run() -> None:
    data = replace(fake(), metrics=None, histories={}, hierarchy=[], examples=[], knowledge={})
    page = Page(render(replace(data, stages=[], versions={})))
    assert "were not evaluated" in page.text
    assert [i for i in page.ids() if not i.startswith("h-")] == ["setup"]


def test_own_sentences_are_not_said_to_be_a_language_model_s() -> None:
    data = fake()
    own = {"model": None, "kept": {"file": 7}, "asked": {"specific": 0}, "dropped": {}, "tokens": 0}
    page = Page(render(replace(data, knowledge={**data.knowledge, **own})))
    assert "No language model was asked. 7 sentences were kept" in page.text
    assert "tuned on 7 sentences (all of them your own)" in page.text
    for claim in ("wrote", "written by", "kind of question"):
        assert claim not in page.text


def test_curves_leave_out_what_was_not_recorded() -> None:
    entry: dict[str, Any] = {"epoch": 1, "loss": 2.0, "held_out_loss": None}
    charts = curves({3: [{**entry, "held_out_map": math.nan}]})
    assert [chart.title for chart in charts] == ["Train loss"]
    assert "seed 3 from 2.00 to 2.00" in charts[0].label


def test_the_best_epoch_is_marked() -> None:
    rising = [{"epoch": e, "loss": v, "held_out_map": v} for e, v in ((1, 5), (2, 9), (3, 7))]
    lowest, highest = (chart.lines[0] for chart in curves({0: rising}))
    assert lowest.points.startswith("{:.1f},{:.1f} ".format(*lowest.best))
    assert " {:.1f},{:.1f} ".format(*highest.best) in highest.points


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 12, 6, [2, 4, 6, 8, 10, 12]),
        (70.3, 91.2, 4, [80, 90]),
        (5, 5, 4, [5]),
    ],
)
def test_ticks(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(expected)


def test_figures_in_words() -> None:
    assert [duration(s) for s in (0.42, 42.4, 59.7, 185, 7439)] == [
        *("0.4 s", "42 s", "1 min 0 s", "3 min 5 s", "2 h 4 min")
    ]
    assert [signed(v) for v in (1.24, -0.41, -0.04, None)] == ["+1.2", "−0.4", "0.0", "–"]
    assert [fixed(-1.0), fixed(None), fixed(0.125, 2)] == ["−1.0", "–", "0.12"]


def test_what_the_local_branch_does_alone_is_told_against_the_best_baseline() -> None:
    rows = {"zero_shot": (60.3, 70.8), "synonym_average": (59.7, 71.0), "tuned": (63.5, 74.0)}
    maps = {method: {"fused": fused, "local": local} for method, (fused, local) in rows.items()}
    assert "synonym_average reaches 71.0, tuned 74.0." in local_caveat({"map": maps})
    maps["tuned"] = {"fused": 80.0, "local": 74.0}
    assert local_caveat({"map": maps}) == ""


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
    assert "An image needs 4.2 tags" in page.text
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
    for of_class in (*data.metrics["ap"].values(), data.metrics["positives"]):
        of_class[HOSTILE] = 1
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
        (58.1, "a difference of −2.6 (95 % interval −4.1 to −1.1). Tuning did harm here."),
    ],
)
def test_the_lead_is_told_with_its_doubt(tuned: float, said: str) -> None:
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
