"""`datafree check`: a list that is spoiled in many ways, and lists with nothing to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done, run_datafree

from orchestrator.runs.label_report import _too_long
from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in
from prompt_tuning.knowledge.label_features import find_with_text_tower, unit_features
from prompt_tuning.knowledge.label_findings import (
    Finding,
    find_in_names,
    find_several_senses,
    foreign_labels,
)

GOOD = "[chair, ladder, waterfall, giraffe, pizza, umbrella, bridge, piano, tractor, tulip]"
# What each spoils: the entries, then level, kind and label of the finding, and words of its advice.
SPOILED: list[tuple[str, str, str, str, str]] = [
    ("[dog, Dogs]", "error", "listed twice", "Dogs", "remove one"),
    ('["café table", "cafe\\u0301 table"]', "error", "listed twice", "cafe\u0301 table", "remove"),
    ("[motorbike, motor bike]", "warning", "two spellings", "motor bike", "synonyms of 'motorb"),
    ("[color chart, colour chart]", "warning", "two spellings", "colour chart", "synonyms of"),
    (
        "[{name: sedan, synonyms: [car]}, {name: automobile, synonyms: [car]}]",
        *("error", "one word for two labels", "automobile", "take the word away"),
    ),
    ("[crane]", "warning", "several senses", "crane", "synonyms or kinds that say which"),
    ("[jaguar]", "warning", "several senses", "jaguar", "such as 'jaguar animal'"),
    ("[sofa, couch]", "warning", "hard to tell apart", "couch", "make them one label"),
    ('[""]', "error", "not a label", "", "write one English name"),
    ('["cat, kitten"]', "error", "not a label", "cat, kitten", "write one English name"),
    ("[n02084071]", "warning", "code", "n02084071", "write what the image shows"),
    ("[自行车]", "warning", "other language", "自行车", "write the English name"),
    ("[Fahrrad]", "warning", "unknown word", "Fahrrad", "synonym in plain English"),
    ("[bycicle]", "warning", "unknown word", "bycicle", "did you mean 'bicycle'?"),
    ("[cat, tabby]", "warning", "kind of another label", "tabby", "under the kinds of 'cat'"),
    ("[skip]", "warning", "no sentences", "skip", "a synonym in plain English words"),
]
Check = Callable[..., Done]


@pytest.fixture
def check(
    tmp_path: Path,
    new_cache: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    monkeypatch.chdir(tmp_path)
    new_cache(tmp_path / "cache")
    vlm = "vlm: {model: efficientnet-lite0+minilm, resolution: 224}"
    Path("mine.yaml").write_text(f"name: mine\ncategories: labels.yaml\n{vlm}\n", "utf-8")
    return lambda *options: run_datafree(monkeypatch, capsys, "check", "mine.yaml", *options)


def test_each_way_to_spoil_a_list_is_found_and_only_that(check: Check) -> None:
    entries = ", ".join([GOOD[1:-1], *(listed[1:-1] for listed, *_ in SPOILED)])
    Path("labels.yaml").write_text(f"categories: [{entries}]", "utf-8")
    done = check("--json")
    assert done.code == 2, "it has errors"
    findings = json.loads(done.out)["findings"]
    for _, level, kind, label, advice in SPOILED:
        found = [f for f in findings if f["kind"] == kind and f["label"] == label]
        assert len(found) == 1, (kind, label, findings)
        assert found[0]["level"] == level
        assert advice in found[0]["advice"]
        assert found[0]["message"]
    expected = {(kind, label) for _, _, kind, label, _ in SPOILED}
    also = {("hard to tell apart", "motor bike"), ("hard to tell apart", "colour chart")}
    assert {(f["kind"], f["label"]) for f in findings} - also == expected
    printed = check()
    assert printed.code == 2
    assert "5 errors" in printed.out
    assert "Traceback" not in printed.err


def test_a_good_list_has_no_findings(check: Check) -> None:
    Path("labels.yaml").write_text(GOOD, "utf-8")
    done = check()
    assert done.code == 0, done.err
    assert "10 labels: 0 errors, 0 warnings" in done.out


def test_lines_of_a_text_file_are_named(check: Check) -> None:
    Path("labels.txt").write_text("chair\nladder\ncat; kitten\n\npiano\n#hash\n", "utf-8")
    done = check("--set=categories=labels.txt", "--json")
    assert done.code == 2
    messages = [finding["message"] for finding in json.loads(done.out)["findings"]]
    assert len(messages) == 2
    assert "labels.txt, line 3: " in messages[0]
    assert "labels.txt, line 6: a comment must have a space" in messages[1]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_lists_have_no_errors_and_no_strange_words(name: str) -> None:
    findings = find_in_names(built_in(name))
    assert {finding.kind for finding in findings} <= {"kind of another label"}


def test_synonyms_decide_which_sense_is_meant(embedded_vlm: VLM) -> None:
    def meant(name: str, *synonyms: str) -> str:
        listed = [{"name": name, "synonyms": synonyms}, {"name": "ladder"}]
        categories = CategoryList.model_validate({"categories": listed}, strict=False)
        [finding] = find_with_text_tower(categories, unit_features(embedded_vlm.encode_text))
        assert (finding.kind, finding.label) == ("several senses", name)
        assert bool(find_several_senses(categories)) == (not synonyms)
        return finding.message

    assert "decide for bat animal" in meant("bat", "flying fox", "fruit bat")
    assert "decide for baseball bat" in meant("bat", "wooden bat of a batter")
    assert "decide for computer mouse" in meant("mouse", "wireless mouse")
    assert "decide for construction crane" in meant("crane", "tower crane")
    assert "decide for crane bird" in meant("crane", "heron")
    assert "is read as" in meant("crane")


def test_a_name_too_long_for_the_tower_is_found(tmp_path: Path) -> None:
    from orchestrator.config.load import load_config

    (tmp_path / "a.yaml").write_text(
        "name: a\ncategories: [dog, x]\n"
        "vlm: {kind: open_clip, model: ViT-B-32-quickgelu, pretrained: openai}",
        "utf-8",
    )
    config = load_config(tmp_path / "a.yaml", [], None, None)
    long = "ðþ" * 35  # two tokens a letter
    findings = _too_long(config, CategoryList.model_validate_json(_listed("dog", long)))
    assert [(f.level, f.kind, f.label) for f in findings] == [("error", "too long", long)]


def _listed(*names: str) -> str:
    return json.dumps({"categories": [{"name": name} for name in names]})


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        (("Hund", "Fahrrad", "Stuhl", "Auto"), 3),
        (("Hund", "Fahrrad"), 0),
        (("selfie", "emoji", "smartwatch", "drone"), 0),
        (("Toyota", "Honda", "Nissan", "Mazda", "Kia", "Pikachu"), 0),
        (("狗", "自行车", "椅子"), 3),
        (("dog", "Fahrrad", "chair", "piano", "tulip", "pizza", "umbrella", "bridge"), 0),
    ],
)
def test_a_list_in_another_language_is_refused_before_anything_starts(
    names: tuple[str, ...],
    foreign: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(foreign_labels(CategoryList.model_validate_json(_listed(*names)))) == foreign
    if foreign:
        (tmp_path / "a.yaml").write_text(f"name: a\ncategories: {list(names)}", "utf-8")
        done = run_datafree(monkeypatch, capsys, "run", tmp_path / "a.yaml", "--dry-run")
        assert done.code == 2
        found = find_in_names(CategoryList.model_validate_json(_listed(*names)))
        assert sum(finding.level == "error" for finding in found) == foreign
        assert f"{foreign} of {len(names)} labels are not English ({names[0]}, " in done.err


def test_english_synonyms_are_a_way_round() -> None:
    listed = [{"name": n, "synonyms": [s]} for n, s in (("Hund", "dog"), ("狗", "puppy"))]
    listed += [{"name": "solidago", "kinds": ["goldenrod"]}, {"name": "betula"}]
    categories = CategoryList.model_validate({"categories": listed}, strict=False)
    assert foreign_labels(categories) == []
    kinds = {finding.label: (finding.level, finding.kind) for finding in find_in_names(categories)}
    assert kinds == {"狗": ("warning", "other language"), "betula": ("warning", "unknown word")}


def test_too_few_labels_are_an_error(check: Check) -> None:
    for listed in ("[dog]", '["", chair]'):
        Path("labels.yaml").write_text(listed, "utf-8")
        done = check("--json")
        assert done.code == 2
        last = json.loads(done.out)["findings"][-1]
        assert (last["level"], last["kind"]) == ("error", "too few")


def test_without_the_towers_weights_the_names_are_checked_all_the_same(check: Check) -> None:
    Path("labels.yaml").write_text("[dog, poodle, crane]", "utf-8")
    done = check("--json", "--set=vlm={kind: open_clip, model: RN50, pretrained: nowhere.pt}")
    found = {(f["kind"], f["label"]) for f in json.loads(done.out)["findings"]}
    expected = {("kind of another label", "poodle"), ("several senses", "crane")}
    assert found == {*expected, ("no text tower", "")}


def test_a_run_begins_with_the_first_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = ["dog", "poodle", "beagle", "crane", "bat", "mole", "bycicle"]
    (tmp_path / "a.yaml").write_text(f"name: a\ncategories: {listed}", "utf-8")
    config, cache = tmp_path / "a.yaml", tmp_path / "cache"
    for command in ("run", "knowledge"):
        done = run_datafree(monkeypatch, capsys, command, config, "--dry-run", "--cache", cache)
        assert done.code == 0, done.err
        assert "warning: label 'bycicle' 'bycicle' is in no English dictionary" in done.out
        assert done.out.count("warning: ") == 5
        assert "1 more findings: datafree check CONFIG" in done.out


def test_findings_are_rows_of_a_table() -> None:
    assert Finding._fields == ("level", "kind", "label", "message", "advice")
