"""Tags into sidecars and out of them again, by the commands, and sidecars as labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Done, run_datafree
from PIL import Image
from sidecar_forms import PROGRAMS, SUBJECT, read_properties, version, write_properties
from tiny_artifact import NAMES

from orchestrator.tagging.tags_file import tags_writer
from prompt_tuning import Artifact
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.plain_text import plain
from prompt_tuning.sidecars.packet import Packet
from prompt_tuning.tagging.artifact import version_of


@pytest.fixture
def datafree(
    tmp_path: Path,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    monkeypatch.chdir(tmp_path)
    return partial(run_datafree, monkeypatch, capsys)


def write_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((48, 32), 60).convert("RGB").save(file, "PNG")


def keywords(sidecar: str | Path) -> list[str]:
    return read_properties(Path(sidecar).read_bytes()).listed(SUBJECT)


def edit(sidecar: str | Path, change: Callable[[list[str]], list[str]]) -> None:
    """As a photo manager would."""
    found = read_properties(Path(sidecar).read_bytes())
    found.set_list(SUBJECT, change(found.listed(SUBJECT)))
    Path(sidecar).write_bytes(write_properties(found, "attributes"))


def names_below(folder: str) -> list[str]:
    return sorted(str(file) for file in Path(folder).rglob("*") if file.is_file())


def test_a_library_is_tagged_corrected_tagged_again_and_untagged(
    datafree: Callable[..., Done], artifact: Path, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        write_image(Path(f"photos/{name}.png"))
    Path("photos/d.png").write_bytes(b"no image")
    Path("photos/c.png.xmp").write_text(PROGRAMS["darktable"], "utf-8")
    before = names_below("photos")
    command = ("tag", artifact, "photos", "--format", "xmp", "--threshold", 0, "--top", 2)

    dry = datafree(*command, "--dry-run")
    assert dry.code == 0
    assert [line.split(": ")[0] for line in dry.out.splitlines()] == [
        f"photos/{name}.png.xmp" for name in ("a", "b", "c")
    ]
    assert dry.out.count("+") == 6
    assert "3 sidecars would be written, 0 already as they should be" in dry.err
    assert "1 could not be read" in dry.err
    assert names_below("photos") == before

    done = datafree(*command)
    assert (done.code, done.out) == (0, "")
    assert "3 sidecars written" in done.err
    a, b, c = (keywords(f"photos/{name}.png.xmp") for name in ("a", "b", "c"))
    assert (len(a), len(b), len(c)) == (2, 2, 4)
    assert {*a, *b} <= {*NAMES}
    assert c[:2] == ["beach", "Tom & Ann"]
    tree = Artifact.load(artifact).tree
    [path] = (
        f"{coarse}|{fine}|{a[0]}".replace("/", "-")
        for coarse, fines in tree.items()
        for fine, names in fines.items()
        if a[0] in names
    )
    levels = dict.fromkeys(path.split("|"))  # a group may be called like its only label
    assert "|".join(levels) in Path("photos/a.png.xmp").read_text("utf-8")

    record = Packet(Path("photos/a.png.xmp").read_bytes()).keywords.record
    assert record is not None and record.artifact == version_of(artifact)

    written = {file: version(file) for file in Path("photos").glob("*.xmp")}
    assert "0 sidecars written, 3 already" in datafree(*command).err
    assert {file: version(file) for file in Path("photos").glob("*.xmp")} == written

    # One tag is wrong, one is missing; another artifact (here, another threshold) comes.
    missing = next(name for name in NAMES if name not in a)
    edit("photos/a.png.xmp", lambda found: [*found[1:], missing])
    assert datafree(*command[:-1], 4).code == 0
    assert a[0] not in keywords("photos/a.png.xmp")
    assert sorted(keywords("photos/a.png.xmp")) == sorted({*NAMES} - {a[0]})
    # All tags of ours vanish with a threshold that none reaches.
    none = datafree(*command[:-4], "--threshold", 1, "--dry-run")
    assert f"photos/b.png.xmp: −{b[0]}" in none.out

    read = DatasetSettings.model_validate({"dataset": "xmp", "root": "photos"})
    labelled = read_photos(read, Artifact.load(artifact).categories)
    assert [file.name for file in labelled.files] == ["a.png"]
    assert labelled.labels.tolist() == [[name == missing for name in NAMES]]
    assert labelled.ignored is not None
    assert labelled.ignored.tolist() == [[name not in (missing, a[0]) for name in NAMES]]
    assert labelled.other_classes == ("Tom & Ann", "beach")

    dry = datafree("untag", "photos", "--dry-run")
    assert "photos/b.png.xmp: −" in dry.out and "file removed" in dry.out
    assert "1 sidecar would be removed, 2 would be cleaned of our tags" in dry.err
    assert datafree("untag", "photos").code == 0
    assert names_below("photos") == sorted([*before, "photos/a.png.xmp"])
    assert Path("photos/c.png.xmp").read_text("utf-8") == PROGRAMS["darktable"]
    assert keywords("photos/a.png.xmp") == [missing]


def write_tags(file: Path, tags: dict[str, list[str]]) -> None:
    made_with = {"artifact": "0123456789abcdef" * 4, "labels": None, "threshold": None, "top": None}
    with tags_writer(file, {**made_with, "images": ""}, file.suffix) as write:
        for image, names in tags.items():
            scored = [{"name": name, "score": 0.5} for name in names]
            write({"file": plain(image), "tags": scored})


def test_tags_of_a_file_go_into_sidecars_however_they_are_named(
    datafree: Callable[..., Done],
) -> None:
    names = ["raw.jpg", "two.jpg", "two.png", "one.JPG", "b\udcff\n.jpg", "loud.jpg"]
    tags = {f"photos/{name}": ["salt|pepper", "and/or"] for name in names}
    tags["photos/two.png"] = ["dog"]
    for image in tags:
        Path(image).parent.mkdir(exist_ok=True)
        Path(image).write_bytes(b"")
    Path("photos/raw.CR2").write_bytes(b"")
    Path("photos/raw.xmp").write_text(PROGRAMS["Lightroom"], "utf-8")
    Path("photos/one.xmp").write_text(PROGRAMS["Lightroom"], "utf-8")
    Path("photos/loud.jpg.XMP").write_text(PROGRAMS["digiKam"], "utf-8")
    write_tags(Path("tags.jsonl"), tags)
    convert = ("convert", "tags.jsonl", "--format", "xmp")

    dry = datafree(*convert, "--dry-run")
    assert "photos/b\\udcff\\n.jpg.xmp: +salt-pepper" in dry.out
    assert datafree(*convert).code == 0  # each in the style that it has
    ours = ["salt-pepper", "and/or"]
    assert sorted(file for file in os.listdir("photos") if file.lower().endswith("xmp")) == sorted(
        ["raw.xmp", "one.xmp", "two.jpg.xmp", "two.png.xmp", "b\udcff\n.jpg.xmp", "loud.jpg.XMP"]
    )
    assert keywords("photos/raw.xmp") == ["beach", "Tom & Ann", *ours]
    assert keywords("photos/loud.jpg.XMP") == ["beach", "Tom & Ann", *ours]
    assert keywords("photos/two.png.xmp") == ["dog"]
    assert "|" not in Path("photos/two.jpg.xmp").read_text("utf-8")  # without groups no hierarchy

    adobe = datafree(*convert, "--sidecars", "adobe")
    assert keywords("photos/two.xmp") == ours
    assert "photos/two.png (photos/two.xmp has those of two.jpg)" in adobe.err
    assert "photos/raw.xmp (raw.jpg, raw.CR2)" in adobe.err
    assert "photos/two.jpg.xmp beside photos/two.xmp" in adobe.err
    dry = datafree(*convert, "--sidecars", "darktable", "--dry-run")
    assert "photos/one.JPG.xmp: +salt-pepper +and/or" in dry.out
    assert "photos/raw.xmp beside photos/raw.jpg.xmp" in dry.err
    assert not Path("photos/one.JPG.xmp").exists()
    assert datafree("untag", "photos/b*", "photos/two.jpg", "typo.jpg").code == 2
    assert Path("photos/b\udcff\n.jpg.xmp").exists()
    assert datafree("untag", "photos/b*", "photos/two.jpg").code == 0
    assert not Path("photos/b\udcff\n.jpg.xmp").exists()
    assert not Path("photos/two.xmp").exists()


def test_what_cannot_be_edited_is_named_and_the_rest_is_done(
    datafree: Callable[..., Done],
) -> None:
    write_tags(Path("tags.csv"), {f"{name}.jpg": ["dog"] for name in ("a", "b", "c", "d", "x/e")})
    for name in "abcd":
        Path(f"{name}.jpg").write_bytes(b"")
    Path("a.jpg.xmp").write_bytes(b"<x:xmpmeta")
    Path("b.jpg.xmp").write_text(PROGRAMS["exiftool"], "utf-8")
    Path("b.jpg.xmp").chmod(0o444)
    Path("c.jpg.xmp").symlink_to("nowhere")
    for dry_run in (["--dry-run"], []):
        done = datafree("convert", "tags.csv", "--format", "xmp", *dry_run)
        assert done.code == 1
        assert "a.jpg.xmp: not XMP (not well-formed" in done.err
        assert "b.jpg.xmp: read-only" in done.err
        assert "c.jpg.xmp: a link to a file that does not exist" in done.err
        assert "3 sidecars could not be written" in done.err
        assert "1 image is gone, and got no sidecar:\n  x/e.jpg" in done.err
    assert keywords("d.jpg.xmp") == ["dog"]
    assert not Path("x").exists()
    assert Path("a.jpg.xmp").read_bytes() == b"<x:xmpmeta"
    done = datafree("untag", ".")
    assert done.code == 1
    assert "a.jpg.xmp: not XMP" in done.err
    assert not Path("d.jpg.xmp").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tag", "x", "y", "--dry-run"], "--dry-run: only goes with --format xmp"),
        (["tag", "x", "y", "--sidecars", "adobe"], "--sidecars: only goes with --format xmp"),
        (["tag", "x", "y", "--format", "xmp", "--sidecars", "a"], "darktable or adobe (got 'a')"),
        (["tag", "x", "y", "--format", "xmp", "--out", "z"], "--out: does not go with"),
        (["convert", "x.jsonl", "--format", "xmp"], "x.jsonl: must be a file of tags"),
        (["convert", "x.jsonl", "--artifact", "y", "--out", "z"], "--artifact: only goes with"),
        (["untag", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    datafree: Callable[..., Done], arguments: list[str], words: str
) -> None:
    done = datafree(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


# Sidecars as labels.

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog"),
        Category(name="sofa", synonyms=("couch",)),
        Category(name="salt/pepper"),
    )
)


def write_sidecar(file: Path, *words: str) -> None:
    text = "".join(f"<rdf:li>{word}</rdf:li>" for word in words)
    file.write_text(
        PROGRAMS["exiftool"].replace("<rdf:li>beach</rdf:li>", text), "utf-8"
    )  # with "Tom & Ann" too


def read(root: Path) -> dict[str, Any]:
    settings = DatasetSettings.model_validate({"dataset": "xmp", "root": str(root)})
    photos = read_photos(settings, CATEGORIES)
    assert photos.ignored is not None
    assert not (photos.labels & photos.ignored).any()
    signs = np.where(photos.ignored, "?", np.where(photos.labels, "+", "-"))
    return {
        "labels": {f.name: "".join(row) for f, row in zip(photos.files, signs, strict=True)},
        "others": photos.other_classes,
    }


def test_keywords_are_labels_by_name_and_synonym(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "b.png", "c.jpg"):
        write_image(tmp_path / name)
    (tmp_path / ".thumbs").mkdir()
    write_sidecar(tmp_path / ".thumbs" / "x.jpg.xmp", "dog")
    write_sidecar(tmp_path / "a.jpg.xmp", "Dogs", "couch")
    write_sidecar(tmp_path / "b.xmp", "salt-pepper")  # Adobe's name: of the first image
    write_sidecar(tmp_path / "c.jpg.xmp", "nothing known")
    write_sidecar(tmp_path / "gone.jpg.xmp", "dog")
    assert read(tmp_path) == {
        "labels": {"a.jpg": "++?", "b.jpg": "??+", "gone.jpg": "+??"},
        "others": ("Tom & Ann", "nothing known"),
    }


def test_the_last_level_of_the_users_hierarchy_is_a_label(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    text = PROGRAMS["digiKam"].replace("Places|beach", "Pets|my dogs|Dog")
    (tmp_path / "a.jpg.xmp").write_text(text, "utf-8")
    assert read(tmp_path)["labels"] == {"a.jpg": "+??"}


def test_sidecars_without_an_answer_are_refused_as_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_sidecar(tmp_path / "a.jpg.xmp", "elk")
    with pytest.raises(
        ValueError, match=r"no keyword of its sidecars is .* there are: Tom & Ann, elk"
    ):
        read(tmp_path)
    (tmp_path / "a.jpg.xmp").write_bytes(b"<")
    with pytest.raises(ValueError, match=r"a\.jpg\.xmp: not XMP"):
        read(tmp_path)
