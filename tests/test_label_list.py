"""Text files of labels as people have them: what is plainly meant is read, the rest refused."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from command_line import run_datafree

from orchestrator.config.label_list import read_label_list
from orchestrator.errors import InputError

ANIMALS = ["dog", "hot dog", "cow"]


@pytest.mark.parametrize(
    "content",
    [
        "dog\nhot dog\ncow",
        "\n dog\n\n\thot  dog \ncow\n\n",
        "# pets\ndog  # the best\nhot dog\n  # cat\n#\ncow\n",
        "- dog\n* hot dog\n•cow\n",
        "1. dog\n2) hot dog\n3: cow\n",
        "(1) dog\n2.hot dog\n- 3. cow\n",
        "0 dog\n1 hot dog\n2 cow\n",
        "1\tdog\n2\thot dog\n3\tcow\n",
        "dog;;\nhot dog,\ncow;\t\n",
        '"dog",\n"hot dog",\n"cow"\n',
        "'dog',\n'hot dog'\n\"cow\"\n",
        "dog\r\nhot dog\r\ncow\r\n",
        "dog\rhot dog\rcow\r",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_plainly_meant_is_read(tmp_path: Path, content: str, encoding: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content.encode(encoding))
    assert read_label_list(file) == ANIMALS


@pytest.mark.parametrize(
    "names",
    [
        ["C#", "3 wheeler", "2.5 l bottle", "7-segment display", "class ring", "AC/DC", "1st aid"],
        ["7 up", "8 ball"],
        ["7 up", "8 ball", "9 pins"],
        ["1 direction", "2 pac"],
        ["fan", "Team #1", "rock 'n'"],
    ],
)
def test_what_belongs_to_a_name_stays(tmp_path: Path, names: list[str]) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(names), "utf-8")
    assert read_label_list(file) == names


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"labels\ndog\ncow", 1, "'labels' looks like a header; delete the line"),
        (b"# mine\nClass name:\ndog\ncow", 2, "looks like a header"),
        (b"dog\ncow,calf\n", 2, "'cow,calf' must be one name"),
        (b"dog, cow, cat\n", 1, "list its other names under `synonyms` in YAML"),
        (b"id name\n1 dog\n2 cat\n3 cow", 1, "'id name' looks like a header"),
        (b"\nAnimals:\n1. dog\n2. cat\n3. cow", 2, "'Animals:' looks like a header"),
        (b"#1 fan\ncat", 1, "a comment must have a space after # (got '#1 fan')"),
        (b"dog\n#cat", 2, "a comment must have a space after # (got '#cat')"),
        (b"7\tdog\n8\tcow\n9\tcat", 1, "must be one name"),
        (b"dog\n\ncow;calf\n", 3, "must be one name"),
        (b"dog\tpuppy\ncow\tcalf\n", 1, "must be one name"),
        (b"id,label\n0,dog\n", 1, "must be one name"),
        (b"dog\nco\x07w", 2, r"'co\x07w' has an invisible character"),
        (b"dog\nco\x0bw", 2, r"'co\x0bw' has an invisible character"),
        ("dog\nco\u200bw".encode(), 2, r"'co\u200bw' has an invisible character"),
        ("dog\ncow".encode("utf-16-le"), 1, "invisible character"),
        (b"dog\n-----\ncow", 2, "must be a label"),
        (b"dog\n-\ncow", 2, "must be a label"),
        (b"dog\n" + b"x" * 99, 2, "at most 80 characters"),
    ],
)
def test_the_rest_is_refused_by_line(tmp_path: Path, content: bytes, line: int, words: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_label_list(file)
    assert str(caught.value).startswith(f"{file}, line {line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    for content in ("dog\ncafé".encode("latin-1"), codecs.BOM_UTF16_LE + b"odd"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"labels\.txt: not UTF-"):
            read_label_list(file)


def test_the_plan_shows_how_many_labels_there_are_and_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    names = "1. dog\n2. cat\n3. cow\n4. fox\n5. owl\n6. bee\n7. hen\n8. pig\n9. car\n"
    Path("labels.txt").write_text(names, "utf-8")
    Path("a.yaml").write_text("name: a\ncategories: labels.txt\n", "utf-8")
    swept = "name: a\ncategories: labels.txt\nsweep: {space: {losses.order: {grid: [0, 1]}}}\n"
    Path("s.yaml").write_text(swept, "utf-8")
    for command, config in (("run", "a.yaml"), ("knowledge", "a.yaml"), ("sweep", "s.yaml")):
        done = run_datafree(monkeypatch, capsys, command, config, "--dry-run")
        assert done.code == 0, done.err
        assert done.out.startswith("9 labels: dog, cat, cow, fox, owl, bee, hen, pig, …\n")
    done = run_datafree(
        monkeypatch, capsys, "run", "a.yaml", "--dry-run", "--set", "categories=[dog, café]"
    )
    assert done.out.startswith("2 labels: dog, café\n")
