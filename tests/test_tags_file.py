"""Files of tags hold any file name, and give it back."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from orchestrator.tagging.tags_file import (
    SUFFIXES,
    read_made_with,
    read_tags,
    row_of,
    tags_writer,
)
from prompt_tuning.label_formats.tag_row import Row, file_of
from prompt_tuning.tagging.tag_stream import Tagged
from prompt_tuning.tagging.tagger import Tag

HOSTILE = [
    *(b"plain.jpg", b"semi;colon.jpg", b"com,ma.jpg", b"'single' \"double\".jpg", b"tab\t.jpg"),
    *(b"cr\rafter.jpg", b"\r.jpg", b"lf\nafter.jpg", b"crlf\r\nafter.jpg", b"=1+1.jpg", b"@a.jpg"),
    *(b"# comment.jpg", b" blank .jpg", b"\\.jpg", b"a\\n.jpg", b"[1].jpg", b"\x1b[31m.jpg"),
    *("ünï\u2028\u0085\N{SNOWMAN}.jpg".encode(), b"bytes-\xff\xfe.jpg", b"cut-\xc3.jpg"),
    *(b"looks-\\udcff.jpg", b"looks-\\udc5c.jpg", b"\\\\udc5cudcff-\xff.jpg"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_names_read_back(tmp_path: Path, suffix: str) -> None:
    files = [Path(os.fsdecode(name)) for name in HOSTILE]
    tags = [Tag("t-shirt", 0.5), Tag("'quoted' \"name\"", 0.25)]
    rows = [row_of(file, Tagged(tags)) for file in files]
    rows += [row_of(file, Tagged(error=f"{file}: cannot\rbe\nread; so")) for file in files]
    rows += [row_of(files[0], Tagged())]
    table = tmp_path / f"tags{suffix}"
    with tags_writer(table, {"top": 1}, suffix) as write:
        for row in rows:
            write(row)
    assert read_made_with(table) == {"top": 1}
    assert list(read_tags(table)) == rows
    again: list[Row] = list(read_tags(table))
    assert [os.fsencode(file_of(row)) for row in again] == [*HOSTILE, *HOSTILE, HOSTILE[0]]
    assert [row["tags"] for row in again[: len(files)]] == [rows[0]["tags"]] * len(files)


def test_a_csv_row_is_one_row_for_other_readers_too(tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    with tags_writer(table, {}, ".csv") as write:
        for name in HOSTILE:
            write(row_of(Path(os.fsdecode(name)), Tagged([Tag("dog", 0.5)])))
    with table.open(encoding="utf-8", newline="") as stream:
        stream.readline()
        read = list(csv.DictReader(stream))
    assert [row["tags"] for row in read] == ["dog"] * len(HOSTILE)
    # And what has nothing to quote stays as plain as it was.
    assert table.read_text("utf-8").splitlines()[:3] == [
        '# {"made_with":{}}',
        "file,tags,scores,error",
        "plain.jpg,dog,0.5,",
    ]


def test_a_json_line_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "tags.jsonl"
    with tags_writer(table, {}, ".jsonl") as write:
        for name in HOSTILE:
            write(row_of(Path(os.fsdecode(name)), Tagged()))
    lines = table.read_bytes().split(b"\n")
    assert [json.loads(line)["tags"] for line in lines[1:-1]] == [[]] * len(HOSTILE)
