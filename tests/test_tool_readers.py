"""The formats of annotation tools, as the tools' own packages read and write them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_datasets import listed, read, shown, write_image
from test_label_formats import NAMES, write_tags

from orchestrator.tagging.tags_file import row_of
from prompt_tuning.tagging.tag_stream import Tagged
from prompt_tuning.tagging.tagger import Tag

ROOT = Path(__file__).parent.parent
READERS = Path(os.environ.get("DATAFREE_READERS", ROOT / ".venv-readers"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (READERS / "bin/python").exists(),
        reason=f"{READERS} has no environment of requirements/readers.txt: make readers",
    ),
]

# In one folder, because Datumaro's reader of YOLO takes no more.
TAGS = {
    "a.jpg": {"dog": 0.75, "AC/DC": 0.5, "naïve ☃": 0.25},
    "b %23 ü.png": {"a|b": 0.5, "animal/cat": 1.0},
    "c&'.jpg": {},
    "d.jpg": {"5\" <b> & 'c'": 0.0625},
}


def run_tool(action: str, tool: str, folder: Path, given: str = "") -> str:
    done = subprocess.run(
        [READERS / "bin/python", ROOT / "tests/tool_readers.py", action, tool, folder],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        # Neither our packages, nor a home that it would write to.
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            "NO_ALBUMENTATIONS_UPDATE": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Who reads a format, how the format is called here, and what the reader wants: the name of our
# file or folder, and where the photos lie.
@pytest.mark.parametrize(
    ("reader", "tool", "target", "photos"),
    [
        ("label_studio", "label_studio", "tasks.json", "photos"),
        ("cvat", "cvat", "annotations.xml", "images/photos"),
        ("coco_json", "coco_json", "annotations/labels_default.json", "photos"),
        ("coco_labels", "coco_json", "annotations/labels_default.json", "images/default/photos"),
        ("fiftyone", "fiftyone", "", "../photos"),
        ("datumaro", "datumaro", "", "images/default/photos"),
        ("yolo", "yolo", "", "images/photos"),
        ("fiftyone_yolo", "yolo", "", "images/photos"),
    ],
)
def test_tools_read_what_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    tool: str,
    target: str,
    photos: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        row_of(Path("photos") / name, Tagged([Tag(*tag) for tag in tags.items()]))
        for name, tags in TAGS.items()
    ]
    folder = tmp_path / "set"
    write_tags(tool, tmp_path / (Path(target).name or "set"), rows, NAMES)
    if target:  # into the layout that this reader wants
        (folder / target).parent.mkdir(parents=True)
        for file in tmp_path.glob("*.*"):
            file.rename((folder / target).with_name(file.name))
    for name in TAGS:
        write_image(folder / photos / name)
    found = json.loads(run_tool("read", reader, folder).splitlines()[-1])
    if reader == "label_studio":
        found = {name.replace("%20", " ").replace("%25", "%"): f for name, f in found.items()}
        found = {
            name.replace("%C3%BC", "ü").replace("%26%27", "&'"): f for name, f in found.items()
        }
    if tool in ("cvat", "yolo"):  # have no scores
        assert {name: set(tags) for name, tags in found.items()} == {
            name: set(tags) for name, tags in TAGS.items()
        }
    else:
        assert found == TAGS


@pytest.mark.parametrize("tool", ["label_studio", "cvat", "datumaro", "fiftyone", "yolo"])
def test_what_tools_write_is_read(tmp_path: Path, tool: str) -> None:
    labels: dict[str, Any] = {
        "a.jpg": ["dog", "AC/DC"],
        "b ü.png": ["a|b"],
        "c.jpg": [],
        "d.jpg": ["dog", "elk"],
    }
    for name in labels:
        write_image(tmp_path / "photos" / name)
    run_tool("write", tool, tmp_path / "made", json.dumps(labels))
    categories = listed("dog", "AC/DC", "a|b")
    photos = read(tool, tmp_path / "made", categories)
    assert all(file.is_file() for file in photos.files)
    if tool == "fiftyone":  # which writes nothing for no label, as for an image not looked at
        del labels["c.jpg"]
    assert shown(photos, categories) == {
        name: set(names) & set(categories.names) for name, names in labels.items()
    }
    assert photos.other_classes == ("elk",)
