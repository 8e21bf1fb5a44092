"""The run report: what it says, that it loads nothing, and that hostile text stays text."""

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

from orchestrator.pages.run_page import Example, ReportData, learning_charts, render
from prompt_tuning.categories import built_in_text

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'
UNTUNED = ("zero_shot", "templates", "synonym_average", "caption_average")
NOTE = "embedded one, not CLIP: its image encoder was trained on ImageNet labels."


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


def test_summary_and_note(page: Page) -> None:
    assert (
        "Prompts tuned on 1,412 captions written by gemma3-270m reach 63.1 mAP on 400 composed "
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
    assert "This run had no images" in page.text
    assert "reach 93.4 mAP on held-out captions" in page.text
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
    assert "No language model was asked. 7 captions were kept" in page.text
    assert "tuned on 7 captions (all of them your own)" in page.text
    for claim in ("wrote", "written by", "kind of question"):
        assert claim not in page.text


def test_curves_leave_out_what_was_not_recorded() -> None:
    entry: dict[str, Any] = {"epoch": 1, "loss": 2.0, "held_out_loss": None}
    charts = learning_charts({3: [{**entry, "held_out_map": math.nan}]})
    assert [chart.title for chart in charts] == ["Training loss"]
    assert "seed 3 from 2.00 to 2.00" in charts[0].label


def test_the_best_epoch_is_marked() -> None:
    rising = [{"epoch": e, "loss": v, "held_out_map": v} for e, v in ((1, 5), (2, 9), (3, 7))]
    lowest, highest = learning_charts({0: rising})
    at_lowest, at_highest = ("{:.1f},{:.1f} ".format(*c.marks[0].at) for c in (lowest, highest))
    assert lowest.lines[0][1].startswith(at_lowest)
    assert f" {at_highest}" in highest.lines[0][1]
