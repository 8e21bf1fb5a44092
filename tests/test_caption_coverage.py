"""Labels that no caption shows: named before anything is computed, and beside all figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
import yaml
from command_line import Done, run_datafree

from orchestrator.cluster.resources import find_resources
from orchestrator.config.load import load_config
from orchestrator.pages.metrics_summary import caption_notes
from orchestrator.plan.knowledge import CAPTIONS
from orchestrator.plan.run import Plan, make_plan
from prompt_tuning.captions import Caption, CaptionWriter, is_held_out, read_caption_file
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.storage import publishing

NAMES = ["dog", "cat", "cow", "fox"]
LISTED = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
OF_TWO = "".join(f"It is number {n}.\tdog\nThis is number {n}.\tcat\n" for n in range(40))
REFUSED = "captions: these labels have no caption to tune on: cow, fox; add captions, or synonyms "
ALLOWED = "captions.allow_missing=true"

Call = Callable[..., Done]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line in a folder with a config of four labels and captions of two of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATAFREE_CACHE", "DATAFREE_RUNS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    Path("own.tsv").write_text(OF_TWO, "utf-8")
    Path("llm").mkdir()
    Path("llm/config.json").write_text(json.dumps({"architectures": ["Llama"]}), "utf-8")
    write_config("own.yaml", per_category=0, relationships=0)

    def call(*arguments: object) -> Done:
        done = run_datafree(monkeypatch, capsys, *arguments)
        assert not ray.is_initialized()
        return done

    return call


def write_config(name: str, **questions: int) -> None:
    config = {
        "name": "four",
        "categories": NAMES,
        "knowledge": {"llm": {"model": "llm"}, "questions": questions},
        "captions": {"files": ["own.tsv"]},
        "vlm": {"model": "efficientnet-lite0+minilm"},
    }
    swept = {**config, "sweep": {"space": {"losses.order": {"grid": [0, 1]}}}}
    Path(name).write_text(yaml.safe_dump(swept), "utf-8")


def plan(config: str, *overrides: str) -> Plan:
    loaded = load_config(Path(config), list(overrides), None, None)
    return make_plan(loaded, find_resources(), None)


@pytest.mark.parametrize("command", [("run", "--dry-run"), ("run",), ("sweep", "--dry-run")])
def test_own_captions_that_leave_labels_out_are_refused_by_the_plan(
    call: Call, command: tuple[str, ...]
) -> None:
    name, *options = command
    done = call(name, "own.yaml", *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert REFUSED in done.err
    assert "captions.allow_missing: true" in done.err
    assert not Path("cache").exists()
    if options:
        assert call(name, "own.yaml", *options, "--set", ALLOWED).code == 0
        # A caption of each, or a synonym that captions use, does it too.
        more = "".join(f"Number {n} stands there.\tcow;FOXES\n" for n in range(9))
        Path("own.tsv").write_text(OF_TWO + more, "utf-8")
        assert call(name, "own.yaml", *options).code == 0


def test_too_few_captions_to_hold_some_out_are_refused_by_the_plan(call: Call) -> None:
    Path("own.tsv").write_text("One.\tdog;cat;cow;fox\n", "utf-8")
    done = call("run", "own.yaml", "--dry-run")
    assert done.code == 2
    assert "1 captions to tune on and 0 held out: both must be at least 1" in done.err


def test_labels_that_a_language_model_left_out_are_refused_before_anything_is_encoded(
    call: Call,
) -> None:
    write_config("asks.yaml", per_category=5, relationships=5)
    planned = plan("asks.yaml")
    with publishing(planned.knowledge.stage.folder) as staging:
        with CaptionWriter(staging / CAPTIONS, LISTED) as writer:
            for caption in read_caption_file(Path("own.tsv"), LISTED):
                writer.write_caption(caption)
        (staging / "timing.json").write_text('{"seconds": 1}', "utf-8")
    for command in ("run", "sweep"):
        done = call(command, "asks.yaml")
        assert done.code == 2
        assert REFUSED in done.err
        assert not planned.captions.parts.exists()
    # What the model wrote stays where it is for the run that is allowed to leave labels out.
    allowed = plan("asks.yaml", ALLOWED)
    assert allowed.knowledge.stage == planned.knowledge.stage
    assert allowed.tuning == planned.tuning


def test_knowledge_warns_of_labels_without_captions(call: Call) -> None:
    done = call("knowledge", "own.yaml")
    assert done.code == 0, done.err
    assert done.out.startswith("4 labels: dog, cat, cow, fox\n")
    assert "warning: No training caption shows 2 of 4 labels: cow, fox." in done.out
    held_out = plan("own.yaml", ALLOWED).config.captions.held_out
    cows = (f"Number {n} is a cow." for n in range(99))
    kept_back = [text for text in cows if is_held_out(Caption(text, (2,), "file"), held_out)]
    with Path("own.tsv").open("a", encoding="utf-8") as file:
        file.writelines(f"{text}\tcow\n" for text in kept_back)
    done = call("knowledge", "own.yaml")
    assert "warning: No training caption shows 2 of 4 labels: cow, fox." in done.out


def test_a_label_whose_captions_are_all_held_out_has_none_to_tune_on() -> None:
    captions = [Caption(f"Number {n}.", (n % 3,), "file") for n in range(400)]
    coverage = CaptionCoverage.of(captions, LISTED, 0.3)
    assert coverage.training + coverage.held_out == 400
    assert 80 < coverage.held_out < 160
    assert coverage.labels_without_training == coverage.labels_without_held_out == ("fox",)
    whole = CaptionCoverage.of(captions, LISTED, 1.0)
    assert (whole.training, whole.labels_without_training) == (0, LISTED.names)


def test_notes_name_what_lacks_captions_and_few_held_out_ones() -> None:
    def notes(*figures: object) -> list[str]:
        coverage = CaptionCoverage(*figures)  # type: ignore[arg-type]
        return caption_notes({"captions": asdict(coverage), "positives": dict.fromkeys(NAMES, 1)})

    assert notes(900, 100, (), ()) == []
    assert caption_notes({}) == []
    missing, few, unseen = notes(40, 1, ("cow", "fox"), ("cat", "cow", "fox"))
    assert "shows 2 of 4 labels: cow, fox." in missing
    assert few.startswith("Only 1 caption was held out")
    assert "No held-out caption shows cat, cow, fox: the text mAP leaves these labels out" in unseen
    many = tuple(f"label {n}" for n in range(300))
    assert "label 9 and 290 more." in notes(900, 100, many, ())[0]
