"""Tags in the formats of annotation tools, and the labels that people give in these tools."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Done, run_datafree
from test_datasets import listed, read, shown, write_image, write_text
from test_tags_file import HOSTILE

from orchestrator.errors import InputError
from orchestrator.tagging.tags_file import row_of, tags_writer
from orchestrator.tagging.tool_formats import TOOLS, tool_writer
from prompt_tuning.categories import Category
from prompt_tuning.datasets.labelled_images import readable
from prompt_tuning.tagging.tag_stream import Tagged
from prompt_tuning.tagging.tagger import Tag

CATEGORIES = listed("dog", "AC/DC", "a|b", "animal/cat", "5\" <b> & 'c'", "naïve ☃", "yak")
NAMES = CATEGORIES.names
MADE_WITH = {"artifact": "0123456789abcdef", "labels": None}


def target_of(tool: str, folder: Path) -> Path:
    """Where a reader expects what a tool's writer writes: a file in the folder, or a folder."""
    name = {"label_studio": "tasks.json", "cvat": "tags.xml", "coco_json": "annotations.json"}
    return folder / name.get(tool, f"tags-{tool}")


def root_of(target: Path) -> Path:
    return target if target.is_dir() else target.parent


def write_tags(tool: str, target: Path, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    with tool_writer(target, tool, names, MADE_WITH) as write:
        for row in rows:
            write(row)


def as_answers(tasks: Path) -> None:
    """Submit each prediction of Label Studio's tasks as an annotation."""
    described = json.loads(tasks.read_bytes())
    for task in described:
        task["annotations"] = [{"result": p["result"]} for p in task["predictions"]]
    tasks.write_text(json.dumps(described))


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_written_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path("in", os.fsdecode(name)) for name in HOSTILE]
    for file in files:
        write_image(file)
    expected = {}
    rows = []
    for number, file in enumerate(files):
        names = [name for i, name in enumerate(NAMES) if number >> (i % 4) & 1 and i < 6]
        expected[os.fsencode(file.name)] = set(names)
        rows.append(row_of(file, Tagged([Tag(name, 0.5) for name in names])))
    rows.insert(1, row_of(Path("in/gone.jpg"), Tagged(error="cannot be read")))
    target = target_of(tool, tmp_path)
    write_tags(tool, target, rows, NAMES)
    if tool == "label_studio":
        as_answers(target)
    photos = read(tool, root_of(target), CATEGORIES)
    assert all(file.is_file() for file in photos.files)
    found = {os.fsencode(name): names for name, names in shown(photos, CATEGORIES).items()}
    if tool == "label_studio":  # which names the labels that somebody saw, not all there are
        found = {name: names - {"?yak"} for name, names in found.items()}
    assert found == expected


@pytest.mark.parametrize("tool", TOOLS)
def test_a_target_is_whole_or_absent(tmp_path: Path, tool: str) -> None:
    write_image(tmp_path / "a.jpg")
    target = target_of(tool, tmp_path)

    def stop_in_the_middle() -> None:
        with tool_writer(target, tool, NAMES, MADE_WITH) as write:
            write(row_of(tmp_path / "a.jpg", Tagged([Tag("dog", 0.5)])))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    left = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert left == ["a.jpg"]
    write_tags(tool, target, [], NAMES)  # no image at all is a whole file too
    assert target.exists()


def test_images_are_named_from_the_targets_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    tagged = Tagged([Tag("dog", 0.5)])
    rows = [row_of(Path("..", "photos", "a.jpg"), tagged), row_of(tmp_path / "b.jpg", tagged)]
    write_tags("coco_json", tmp_path / "tags.json", rows, NAMES)
    images = json.loads((tmp_path / "tags.json").read_bytes())["images"]
    assert [image["file_name"] for image in images] == ["photos/a.jpg", "b.jpg"]
    with pytest.raises(InputError, match=r"must be in a folder above the images.*photos/a\.jpg"):
        write_tags("coco_json", Path("tags.json"), rows, NAMES)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_no_name_leads_out_of_the_target(tmp_path: Path, tool: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    # Bytes of `/` and `.`, which are never escaped so in a file of tags.
    up, root = r"\udc2e\udc2e/", str(tmp_path).replace("/", r"\udc2f")
    rows = [{"file": f"{folder}/{name}", "tags": []} for name in (up * 4 + "x.jpg", root + "x.jpg")]
    write_tags(tool, target_of(tool, folder), rows, NAMES)
    assert [file for file in tmp_path.rglob("*.*") if folder not in file.parents] == []
    for file in (f"{folder}/../x.jpg", "/x.jpg", f"{folder}/..", f"{folder}/"):
        with pytest.raises(InputError, match=r"must be in a folder above|must be the path of an"):
            write_tags(tool, folder / "new", [{"file": file, "tags": []}], NAMES)


def test_yolo_has_one_label_file_for_a_name(tmp_path: Path) -> None:
    rows = [row_of(tmp_path / name, Tagged()) for name in ("a.jpg", "a.png")]
    with pytest.raises(InputError, match=r"a\.png: another image has this name"):
        write_tags("yolo", tmp_path / "tags", rows, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_scores_and_versions_are_written(tmp_path: Path) -> None:
    rows = [
        row_of(tmp_path / "a b.jpg", Tagged([Tag("dog", 0.75), Tag("a|b", 0.5)])),
        row_of(tmp_path / "c.jpg", Tagged()),
    ]
    for tool in ("label_studio", "coco_json", "datumaro", "fiftyone"):
        write_tags(tool, tmp_path / tool, rows, NAMES)

    def written(name: str) -> Any:
        return json.loads((tmp_path / name).read_bytes())

    first, second = written("label_studio")
    assert first["data"]["image"] == "/data/local-files/?d=a%20b.jpg"
    assert first["data"]["scores"] == {"dog": 0.75, "a|b": 0.5}
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == "datafree 0123456789ab"
    assert prediction["score"] == 0.5
    (result,) = prediction["result"]
    assert result["value"] == {"choices": ["dog", "a|b"]}
    assert second["predictions"][0]["result"] == []
    config = ET.parse(tmp_path / "label_studio.config.xml").getroot()
    image, choices = config
    assert (image.get("name"), image.get("value")) == (result["to_name"], "$image")
    assert (choices.get("name"), choices.get("toName")) == (result["from_name"], "image")
    assert [choice.get("value") for choice in choices] == list(NAMES)

    coco = written("coco_json")
    assert coco["info"]["made_with"] == MADE_WITH
    assert [c["name"] for c in coco["categories"]] == list(NAMES)
    assert [(a["image_id"], a["category_id"], a["score"]) for a in coco["annotations"]] == [
        *((1, 1, 0.75), (1, 3, 0.5))
    ]
    items = written("datumaro/annotations/default.json")["items"]
    assert [a["attributes"]["score"] for a in items[0]["annotations"]] == [0.75, 0.5]
    samples = written("fiftyone/labels.json")["labels"]
    assert samples == {
        "1": [{"label": "dog", "confidence": 0.75}, {"label": "a|b", "confidence": 0.5}],
        "2": [],
    }
    assert written("fiftyone/data.json") == {"1": "../a b.jpg", "2": "../c.jpg"}


# What the tools export of two photos: in/a.jpg shows a dog and (as a synonym) a couch, b.jpg
# neither, and c.jpg an elk, which is not in the list.
PEOPLES = listed("dog", Category(name="couch", synonyms=("sofa",)))
EXPECTED = {"a.jpg": {"dog", "couch"}, "b.jpg": set(), "c.jpg": set()}


def choices(*names: str, kind: str = "choices") -> list[dict[str, Any]]:
    return [{"type": kind, "from_name": "x", "to_name": "y", "value": {kind: list(names)}}]


def task(url: str, *answers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    annotations = [{"id": 1, "result": result, "was_cancelled": False} for result in answers]
    return {"id": 5, "data": {"note": "x", "photo": url}, "annotations": annotations, **more}


LABEL_STUDIO = {
    "local files": [
        task("/data/local-files/?d=all/photos/in/a.jpg", choices("Dogs", "Sofa")),
        task("http://localhost:8080/data/local-files/?d=all%2Fphotos%2Fb.jpg", []),
        task("/data/local-files/?d=all/photos/c.jpg", choices("elk")),
    ],
    "uploads and buckets": [
        task("s3://bucket/in/a.jpg", choices("dog"), choices("dog"), predictions=[7]),
        task("/data/upload/3/0a1b2c3d-b.jpg", choices()),
        task("https://example.org/c.jpg?token=1", choices("elk", "elk")),
        task("https://example.org/d.jpg?token=1"),  # nobody has looked
    ],
    "regions": [
        task(
            "in/a.jpg",
            choices("dog", kind="rectanglelabels") + choices("sofa", kind="polygonlabels"),
        ),
        task("b.jpg", [{"type": "textarea", "value": {"text": ["dog"]}}]),
        task("c.jpg", choices("elk", kind="labels")),
    ],
    "JSON-MIN": [
        {"photo": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "it": {"choices": ["dog", "sofa"]}},
        {"photo": "/data/upload/1/0a1b2c3d-b.jpg", "id": 2, "annotator": 1},
        {"photo": "/data/upload/1/0a1b2c3d-c.jpg", "id": 3, "it": "elk", "note": "sofa"},
    ],
}


@pytest.mark.parametrize("export", LABEL_STUDIO)
def test_label_studios_exports(tmp_path: Path, export: str) -> None:
    for name in ("a.jpg" if export == "JSON-MIN" else "in/a.jpg", "b.jpg", "c.jpg"):
        write_image(tmp_path / name)
    write_text(tmp_path / "project-1-at-2026.json", json.dumps(LABEL_STUDIO[export]))
    photos = read("label_studio", tmp_path, PEOPLES)
    assert all(file.is_file() for file in photos.files)
    if "buckets" in export:  # nobody saw a couch
        assert shown(photos, PEOPLES) == {
            "a.jpg": {"dog", "?couch"},
            "b.jpg": {"?couch"},
            "c.jpg": {"?couch"},
        }
    else:
        assert shown(photos, PEOPLES) == EXPECTED
    assert photos.other_classes == ("elk",)


def test_answers_of_several_people(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    tasks = [
        task("a.jpg", choices("dog", "sofa"), choices("dog"), predictions=[]),
        task("b.jpg", [], predictions=[{"result": choices("yak")}]),
    ]
    tasks[1]["annotations"].append({"result": choices("dog"), "was_cancelled": True})
    write_text(tmp_path / "e.json", json.dumps(tasks))
    categories = listed("dog", "sofa", "yak", "emu")
    photos = read("label_studio", tmp_path, categories)
    # The sofa of a.jpg is not certain; the yak was offered, and nobody took it.
    assert shown(photos, categories) == {"a.jpg": {"dog", "?sofa", "?emu"}, "b.jpg": {"?emu"}}


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><name>yak</name><labels>
 <label><name>dog</name><attributes/></label><label><name>sofa</name></label>
 <label><name>elk</name></label></labels><owner><username>o</username></owner></task></meta>
<image id="0" name="all/in/a.jpg" width="24" height="16">
 <tag label="dog" source="manual"></tag>
 <box label="sofa" xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="label">elk</attribute></box>
</image>
<image id="1" name="all/b.jpg" width="24" height="16"></image>
<image id="2" name="all/c.jpg" width="24" height="16"><tag label="elk"/></image>
</annotations>
"""
DATUMARO: dict[str, Any] = {
    "info": {},
    "categories": {"label": {"labels": [{"name": n} for n in ("elk", "sofa", "dog")]}},
    "items": [
        {
            "id": "in/a",
            "annotations": [
                {"type": "label", "label_id": 2},
                {"type": "bbox", "label_id": 1, "bbox": [0, 0, 1, 1]},
                {"type": "caption", "caption": "elk"},
            ],
            "image": {"path": "in/a.jpg", "size": [16, 24]},
        },
        {"id": "b.jpg", "annotations": []},
        {
            "id": "c",
            "annotations": [{"type": "label", "label_id": 0}],
            "media": {"path": "c.jpg"},
        },
    ],
}
FIFTYONE: dict[str, Any] = {
    "classes": ["elk", "dog", "sofa"],
    "labels": {
        "in/a": [1, {"label": "sofa", "confidence": 0.5}],
        "b": [],
        "c": "elk",
        "d": None,
    },
}


def export_cvat(root: Path) -> None:
    write_text(root / "annotations.xml", CVAT)


def export_datumaro(root: Path) -> None:
    write_text(root / "annotations" / "train.json", json.dumps(DATUMARO))


def export_fiftyone(root: Path) -> None:
    write_text(root / "labels.json", json.dumps(FIFTYONE))


def export_yolo(root: Path) -> None:
    write_text(root / "data.yaml", "names: [elk, dog, sofa]\n")
    write_text(root / "labels" / "in" / "a.txt", "1 0.5 0.5 1 1\n2\n\n")
    write_text(root / "labels" / "b.txt", "")
    write_text(root / "labels" / "c.txt", "0 0.1 0.1 0.2 0.2 0.9")


EXPORTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cvat": (export_cvat, ""),
    "datumaro": (export_datumaro, "images/train"),
    "fiftyone": (export_fiftyone, "data"),
    "yolo": (export_yolo, "images"),
}


def exported(
    tool: str, root: Path, photos: tuple[str, ...] = ("in/a.jpg", "b.jpg", "c.jpg")
) -> None:
    export, images = EXPORTS[tool]
    export(root)
    for name in photos:
        write_image(root / images / name)


@pytest.mark.parametrize("tool", EXPORTS)
def test_what_tools_export(tmp_path: Path, tool: str) -> None:
    exported(tool, tmp_path)
    photos = read(tool, tmp_path, PEOPLES)
    assert all(file.is_file() for file in photos.files)
    assert shown(photos, PEOPLES) == EXPECTED
    assert photos.other_classes == ("elk",)


@pytest.mark.parametrize("tool", EXPORTS)
def test_a_photo_that_is_gone_is_named(tmp_path: Path, tool: str) -> None:
    exported(tool, tmp_path, ("in/a.jpg", "b.jpg"))
    photos, problems = readable(read(tool, tmp_path, PEOPLES))
    assert {file.name for file in photos.files} == {"a.jpg", "b.jpg"}
    (problem,) = problems.values()
    assert Path(next(iter(problems))).stem == "c"
    assert "No such file" in problem


def test_one_image_with_other_labels_elsewhere(tmp_path: Path) -> None:
    exported("cvat", tmp_path / "cvat")
    twice = CVAT.replace(
        "</annotations>", '<image id="3" name="all/b.jpg">{}</image></annotations>'
    )
    write_text(tmp_path / "cvat/annotations.xml", twice.format('<tag label="dog"/>'))
    with pytest.raises(ValueError, match=r"image 1 and image 3 disagree about 'all/b.jpg' \(no "):
        read("cvat", tmp_path / "cvat", PEOPLES)
    write_text(tmp_path / "cvat/annotations.xml", twice.format(""))
    assert shown(read("cvat", tmp_path / "cvat", PEOPLES), PEOPLES) == EXPECTED

    export_datumaro(tmp_path / "dm")
    write_image(tmp_path / "dm/images/in/a.jpg")
    other = {**DATUMARO, "items": [{**DATUMARO["items"][0], "annotations": []}]}
    write_text(tmp_path / "dm/annotations/val.json", json.dumps(other))
    with pytest.raises(ValueError, match=r"train.json, item 1 and val.json, item 1 disagree about"):
        read("datumaro", tmp_path / "dm", PEOPLES)


BOMB = CVAT.replace(
    "<annotations>", '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><annotations>', 1
)
MISTAKES: dict[str, dict[str, tuple[str, str]]] = {
    "label_studio": {
        "{": (
            "e.json",
            "e.json: not JSON (Expecting property name enclosed in double quotes: line",
        ),
        "[" * 100_000: ("e.json", "e.json: not JSON (nested too deeply)"),
        "{}": ("e.json", "must be a list of tasks"),
        "[7]": ("e.json", "e.json: task 1: not as expected"),
        '[{"data": {"image": "a.jpg"}}]': ("e.json", "e.json: task 1: 'annotations' is missing"),
        '[{"data": {"text": "a"}, "annotations": []}]': (
            "e.json",
            "task 1: not as expected (no fi",
        ),
        json.dumps([task("a.jpg", choices("dog")), task("b.jpg", [{"type": "choices"}])]): (
            "e.json",
            "e.json: task 2: 'value' is missing",
        ),
        json.dumps([task("a.jpg", [], predictions=[]), task("b.jpg", choices(3))]): (  # type: ignore[arg-type]
            "e.json",
            "e.json: task 2: not as expected (choices must be text (got 3))",
        ),
        json.dumps([task("a.jpg", predictions=[{"result": choices("dog")}])]): (
            "e.json",
            "e.json: has predictions but no annotations: nobody has labelled an image yet",
        ),
        "[]": ("e.json", "e.json: has no annotations"),
        json.dumps([task("a.jpg", [])]): ("e.json", "e.json: no image has a label"),
        json.dumps([task("a.jpg", choices("unicorn"))]): ("e.json", "there are: unicorn"),
    },
    "cvat": {
        "<annotations>\n<image": ("e.xml", "e.xml: unclosed token: line 2"),
        "not": ("e.xml", "e.xml: syntax error: line 1"),
        "<annotation/>": ("e.xml", "e.xml: must be CVAT's XML, with <annotations> first (got <ann"),
        BOMB: ("e.xml", "e.xml: must not have a DOCTYPE"),
        CVAT.replace('name="all/b.jpg"', ""): ("e.xml", "e.xml: image 1: name is missing"),
        CVAT.replace("<image", "<track").replace("</image", "</track"): ("e.xml", "CVAT for video"),
        "<annotations></annotations>": ("e.xml", "e.xml: no image is labelled"),
        CVAT.replace("utf-8", "klingon"): ("e.xml", "e.xml: unknown encoding"),
    },
    "datumaro": {
        "[]": ("annotations/e.json", "e.json: categories: not as expected"),
        '{"categories": {}}': ("annotations/e.json", "e.json: categories: 'label' is missing"),
        json.dumps(DATUMARO).replace('"label_id": 2', '"label_id": 3'): (
            "annotations/e.json",
            "e.json: item 1: not as expected (label_id must be from 0 to 2 (got 3))",
        ),
        json.dumps(DATUMARO).replace('"id": "b.jpg", ', ""): (
            "annotations/e.json",
            "e.json: item 2: 'id' is missing",
        ),
    },
    "fiftyone": {
        "[]": ("labels.json", "labels.json: classes: not as expected"),
        '{"samples": []}': ("labels.json", "labels.json: classes: 'labels' is missing"),
        '{"labels": {"a": [3]}}': (
            "labels.json",
            "sample 'a': not as expected (label must be text",
        ),
        '{"labels": {"a": [{"name": "dog"}]}}': ("labels.json", "sample 'a': 'label' is missing"),
        '{"labels": {"a": null}}': ("labels.json", "labels.json: no image is labelled"),
    },
    "yolo": {
        "0 0.5 0.5 1 1\n7 0.5 0.5 1 1": (
            "labels/e.txt",
            "e.txt: line 2: not as expected (must begin",
        ),
        "dog 1 1 1 1": ("labels/e.txt", "e.txt: line 1: not as expected (must begin with an index"),
        "-1": ("labels/e.txt", "(got '-1')"),
        "names: [dog": ("data.yaml", "data.yaml: not YAML (while parsing"),
        "nc: 3": ("data.yaml", "data.yaml: names: 'names' is missing"),
        "names: [3, 4]": ("data.yaml", "a name must be text (got 3)"),
        "names: &a [*a]": ("data.yaml", "a name must be text"),
        "!!python/object/apply:os.system [exit]": ("data.yaml", "data.yaml: not YAML (could not"),
    },
}


@pytest.mark.parametrize("tool", MISTAKES)
def test_foreign_and_broken_files_are_refused_in_one_line(tmp_path: Path, tool: str) -> None:
    for number, (content, (name, message)) in enumerate(MISTAKES[tool].items()):
        root = tmp_path / str(number)
        write_text(root / name, content)
        if tool == "yolo":
            if not (root / "data.yaml").exists():
                write_text(root / "data.yaml", "names: {0: dog}")
            write_text(root / "labels" / "a.txt", "0")
        with pytest.raises(ValueError) as raised:
            read(tool, root, PEOPLES)
        assert message in str(raised.value), content[:200]
        assert str(root) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("tool", [*EXPORTS, "label_studio"])
def test_a_missing_export_is_described(tmp_path: Path, tool: str) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}.*it must be a folder "):
        read(tool, tmp_path, PEOPLES)
    if tool in ("cvat", "label_studio"):
        for name in ("a", "b"):
            write_text(tmp_path / (name + TOOLS[tool].suffix), "")
        with pytest.raises(ValueError, match=r"must have one \*.* \(got a\..* and b\."):
            read(tool, tmp_path, PEOPLES)


def test_a_folder_that_all_names_begin_with_may_be_missing_and_no_other(tmp_path: Path) -> None:
    names = ("in/a.jpg", "b.jpg", "c.jpg")
    for name in names:
        write_image(tmp_path / name)
    write_text(tmp_path / "e.xml", CVAT.replace("all/", "C:\\x\\"))
    assert shown(read("cvat", tmp_path, PEOPLES), PEOPLES) == EXPECTED
    # b.jpg lies in the folder, but in/b.jpg is another photo, which is gone.
    write_text(tmp_path / "e.xml", CVAT.replace("all/b.jpg", "all/in/b.jpg"))
    photos = read("cvat", tmp_path, PEOPLES)
    assert [file.is_file() for file in photos.files] == [True, False, True]


def test_fiftyone_takes_only_endings_of_images_from_names(tmp_path: Path) -> None:
    names = ("a", "a.1", "a.2")
    for name in names:
        write_image(tmp_path / "data" / f"{name}.jpg")
    labels = {"a": ["dog"], "a.1": ["sofa"], "a.2": []}
    write_text(tmp_path / "labels.json", json.dumps({"labels": labels}))
    expected = {"a.jpg": {"dog"}, "a.1.jpg": {"couch"}, "a.2.jpg": set()}
    assert shown(read("fiftyone", tmp_path, PEOPLES), PEOPLES) == expected
    for ending in ("", ".jpg"):
        data = {f"{name}{ending}": f"data/{name}.jpg" for name in names}
        write_text(tmp_path / "data.json", json.dumps(data))
        photos = read("fiftyone", tmp_path, PEOPLES)
        assert all(file.is_file() for file in photos.files)
        assert shown(photos, PEOPLES) == expected


@pytest.mark.parametrize("tool", ["fiftyone", "yolo"])
def test_a_name_without_its_ending_must_be_of_one_image(tmp_path: Path, tool: str) -> None:
    exported(tool, tmp_path)
    other = tmp_path / EXPORTS[tool][1] / "in" / "a.png"
    write_image(other)
    with pytest.raises(ValueError, match=r"in/a.*must have one image; .*a\.jpg.* and .*a\.png"):
        read(tool, tmp_path, PEOPLES)
    other.rename(tmp_path / EXPORTS[tool][1] / "other.png")  # nobody labelled it
    assert shown(read(tool, tmp_path, PEOPLES), PEOPLES) == EXPECTED


def name_image(dataset: str, root: Path, name: str) -> None:
    """Write annotations of one image, with a dog."""
    box = {"image_id": 1, "category_id": 1}
    coco = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "dog"}]}
    item = {"id": name, "annotations": [{"type": "label", "label_id": 2}]}
    written = {
        "label_studio": ("e.json", json.dumps([task(name, choices("dog"))])),
        "cvat": (
            "e.xml",
            CVAT[: CVAT.index("<image")]
            + f'<image name="{name}"><tag label="dog"/></image></annotations>',
        ),
        "datumaro": ("annotations/e.json", json.dumps({**DATUMARO, "items": [item]})),
        "fiftyone": ("labels.json", json.dumps({"labels": {name: "dog"}})),
        "coco_json": ("annotations.json", json.dumps({**coco, "annotations": [box]})),
        "folder": ("labels.csv", f"{name},dog\n"),
    }
    write_text(root / written[dataset][0], written[dataset][1])


NAMING = ("label_studio", "cvat", "datumaro", "fiftyone", "coco_json", "folder")


@pytest.mark.parametrize("dataset", NAMING)
def test_annotations_name_no_image_outside_their_folder(tmp_path: Path, dataset: str) -> None:
    root = tmp_path / "x" / "root"
    write_image(tmp_path / "a.jpg")
    (root / "images").mkdir(parents=True)
    (root / "data").mkdir()
    refused = "must be in" if dataset != "folder" else "must be a file in"
    for name in (
        str(tmp_path / "a.jpg"),
        *("../" * up + "a.jpg" for up in range(1, 6)),
        "y/../../../a.jpg",
    ):
        name_image(dataset, root, name)
        with pytest.raises(ValueError, match=f"{refused} {tmp_path}|none of 1 images can be read"):
            read(dataset, root, PEOPLES)
    # The owner of a folder may put links there, and tools write whole paths.
    (root / "link").symlink_to(tmp_path)
    for name in ("link/a.jpg", str(root / "link" / "a.jpg"), f"{root}/images/../link/a.jpg"):
        name_image(dataset, root, name)
        (file,) = read(dataset, root, PEOPLES).files
        assert file.samefile(tmp_path / "a.jpg"), name


def test_fiftyones_data_may_be_anywhere(tmp_path: Path) -> None:
    write_image(tmp_path / "here" / "a.jpg")
    write_image(tmp_path / "there" / "a.jpg")
    root = tmp_path / "x" / "export"
    write_text(root / "labels.json", json.dumps({"labels": {"1": "dog", "2": "sofa"}}))
    files = {str(i): str(tmp_path / n / "a.jpg") for i, n in enumerate(("here", "there"), 1)}
    write_text(root / "data.json", json.dumps(files))
    assert [str(file) for file in read("fiftyone", root, PEOPLES).files] == list(files.values())


@pytest.fixture
def convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Calls `datafree convert` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_datafree(monkeypatch, capsys, "convert", *arguments)


def write_table(file: Path) -> None:
    with tags_writer(file, MADE_WITH, file.suffix) as write:
        write(row_of(Path("photos/a.jpg"), Tagged([Tag("dog", 0.75), Tag("AC/DC", 0.5)])))
        write(row_of(Path("photos/broken.jpg"), Tagged(error="cannot be read, so")))
        write(row_of(Path(os.fsdecode(b"photos/\xff.jpg")), Tagged()))


def test_convert_goes_from_each_table_to_each_format(convert: Callable[..., Done]) -> None:
    write_table(Path("tags.jsonl"))
    for old, new in (("tags.jsonl", "b.csv"), ("b.csv", "c.parquet"), ("c.parquet", "d.jsonl")):
        done = convert(old, "--out", new)
        assert (done.code, done.err) == (0, f"3 images\n{new}\n")
    assert Path("d.jsonl").read_bytes() == Path("tags.jsonl").read_bytes()
    for tool in TOOLS:
        out = target_of(tool, Path())
        done = convert("tags.jsonl", "--format", tool, "--out", out)
        assert done.code == 0, done.err
        assert f"2 images, 1 left out because they could not be read\n{out}\n" in done.err
        assert ("tasks.config.xml\n" in done.err) == (tool == "label_studio")
    for table in ("b.csv", "c.parquet"):
        assert convert(table, "--format", "coco_json", "--out", f"{table}.json").code == 0
        assert Path(f"{table}.json").read_bytes() == Path("annotations.json").read_bytes()


def test_convert_refuses_what_is_not_a_file_of_tags(convert: Callable[..., Done]) -> None:
    write_table(Path("tags.jsonl"))
    head = Path("tags.jsonl").read_text().splitlines()[0]
    for lines, message in (
        ("{}", "t.jsonl: must be a file of tags that `datafree tag --out` wrote"),
        ("[" * 100_000, "t.jsonl: must be a file of tags that `datafree tag --out` wrote"),
        (head + "\n" + "[" * 100_000, "t.jsonl: row 1: nested too deeply"),
        (head + '\n{"file": "a.jpg"}', "t.jsonl: row 1: 'tags' is missing"),
        (head + '\n{"file": "a.jpg", "tags": []}\n{', "t.jsonl: row 2: "),
        (head + '\n{"file": "a\\ud800.jpg", "tags": []}', "t.jsonl: row 1: 'utf-8' codec"),
        (head + '\n{"file": 3, "tags": []}', "t.jsonl: row 1: "),
        (
            head + '\n{"file": "a.jpg", "tags": [{"name": "a;b", "score": 1}]}',
            "row 1: label 'a;b': 'a;b' must be one name",
        ),
        (head + '\n{"file": "a.jpg", "tags": [{"name": "a\\u0001", "score": 1}]}', "invisible"),
        (
            head + '\n{"file": "a.jpg", "tags": [{"name": "a", "score": NaN}]}',
            "row 1: score must be from 0 to 1 (got nan)",
        ),
    ):
        Path("t.jsonl").write_text(lines + "\n")
        for out in (("out.csv",), ("out.json", "--format", "coco_json")):
            done = convert("t.jsonl", "--out", *out)
            assert (done.code, done.err.count("\n")) == (2, 1), done.err
            assert message in done.err
    assert sorted(file.name for file in Path().iterdir()) == ["t.jsonl", "tags.jsonl"]
    cells = f"a.jpg,{'a' * 200_000},0.5,"
    Path("t.csv").write_text(f'# {{"made_with": {{}}}}\nfile,tags,scores,error\n{cells}\n')
    done = convert("t.csv", "--out", "out.jsonl")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "t.csv: row 1: field larger than field limit" in done.err


@pytest.mark.parametrize("tool", TOOLS)
def test_a_table_need_not_say_what_it_was_made_with(
    convert: Callable[..., Done], tool: str
) -> None:
    row = '{"file": "a.jpg", "tags": []}'
    for number, made_with in enumerate(("{}", '{"artifact": 7}')):
        Path("t.jsonl").write_text(f'{{"made_with": {made_with}}}\n{row}\n')
        suffix = TOOLS[tool].suffix
        done = convert("t.jsonl", "--format", tool, "--out", f"{number}{suffix}")
        assert (done.code, done.err.splitlines()[0]) == (0, "1 image")


def test_convert_and_its_options(convert: Callable[..., Done]) -> None:
    write_table(Path("tags.jsonl"))
    Path("there.csv").touch()
    Path("there").mkdir()
    Path("mine.config.xml").touch()
    for arguments, message in (
        (("--out", "x.txt"), "must end in .jsonl or .csv or .parquet, or --format name a tool"),
        (("--out", "there.csv"), "--out: there.csv exists already"),
        (
            ("--format", "paper", "--out", "x"),
            "--format: must be one of label_studio, cvat, coco_js",
        ),
        (("--format", "cvat", "--out", "x.json"), "x.json must be a file ending in .xml"),
        (("--format", "yolo", "--out", "x.txt"), "x.txt must be the name of a new folder"),
        (("--format", "yolo", "--out", "there"), "--out: there exists already"),
        (
            ("--format", "label_studio", "--out", "mine.json"),
            "--out: mine.config.xml exists already",
        ),
        (("--format", "cvat", "--out", "there/x.xml"), "must be in a folder above the images"),
    ):
        done = convert("tags.jsonl", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert message in done.err
    assert list(Path("there").iterdir()) == []
    done = convert("nowhere.jsonl", "--out", "x.csv")
    assert (done.code, "nowhere.jsonl: must be a file of tags" in done.err) == (2, True)
