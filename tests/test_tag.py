"""`datafree tag` end to end: a real artifact, real files of every kind, killed processes."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from command_line import Done, run_datafree
from PIL import Image
from tiny_artifact import NAMES

from orchestrator.tagging.listing import ImageListing
from prompt_tuning import Tagger
from prompt_tuning.categories import CategoryList
from prompt_tuning.images import MAX_PIXELS, open_image
from prompt_tuning.storage import publishing
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.tag_stream import TagRule, started_ahead, tag_files

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tag(
    artifact: Path,
    tmp_path: Path,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """Calls `datafree tag` with the artifact, in this process and an empty folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the machine may be busy
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        done = run_datafree(monkeypatch, capsys, "tag", artifact, *arguments)
        assert not ray.is_initialized()
        return done

    return call


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    files = [folder / f"{number:03d}.png" for number in range(count)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48)).save(
            file
        )
    return files


def rows_of(file: Path) -> list[dict[str, Any]]:
    _, *rows = map(json.loads, file.read_text("utf-8").splitlines())
    return rows


def test_tags_are_the_taggers_in_every_format(
    tag: Callable[..., Done], artifact: Path, lasting_cache: Path
) -> None:
    files = write_images(Path("photos"), 9)
    Path("photos/004.png").write_bytes(b"no image")
    for kind in ("jsonl", "csv", "parquet"):
        done = tag("photos", "--out", f"tags.{kind}", "--threshold", 0.1, "--top", 2)
        assert done.code == 0
        assert "8 tagged" in done.err
        assert "photos/004.png: error: cannot be read as an image" in done.err
    rows = rows_of(Path("tags.jsonl"))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    broken = rows.pop(4)
    assert broken["tags"] == []
    assert "not of a known format" in broken["error"]
    tagger = Tagger.load(artifact, "cpu", lasting_cache)
    expected = tagger.tag([file for file in files if file.stem != "004"], threshold=0.1, top=2)
    assert any(expected)
    for row, tags in zip(rows, expected, strict=True):
        assert [tag["name"] for tag in row["tags"]] == [tag.name for tag in tags]
        scores = [tag["score"] for tag in row["tags"]]
        np.testing.assert_allclose(scores, [tag.score for tag in tags], atol=1e-4)

    rows.insert(4, broken)
    table = pq.read_table("tags.parquet")
    assert table["tags"].to_pylist() == [row["tags"] for row in rows]
    assert table["error"].to_pylist() == [row.get("error") for row in rows]
    with Path("tags.csv").open(encoding="utf-8", newline="") as stream:
        head = json.loads(stream.readline().removeprefix("# "))
        columns = list(csv.DictReader(stream))
    assert [c["tags"] for c in columns] == [";".join(t["name"] for t in r["tags"]) for r in rows]
    assert [c["scores"] for c in columns] == [
        ";".join(str(t["score"]) for t in r["tags"]) for r in rows
    ]
    assert [c["error"] for c in columns] == [row.get("error", "") for row in rows]
    first = json.loads(Path("tags.jsonl").read_text("utf-8").splitlines()[0])
    in_table = json.loads(table.schema.metadata[b"made_with"])
    assert head["made_with"] == first["made_with"] == in_table
    assert first["made_with"]["threshold"] == 0.1
    assert sorted(p.name for p in Path().iterdir()) == [
        *("photos", "tags.csv", "tags.jsonl", "tags.parquet")
    ]
    # Read back from every kind, with a page; nothing is written again.
    for kind in ("jsonl", "csv", "parquet"):
        before = Path(f"tags.{kind}").stat()
        command = ("photos", "--out", f"tags.{kind}", "--threshold", 0.1, "--top", 2)
        done = tag(*command, "--sheet", "page.html")
        assert done.code == 0
        assert "Nothing to do" in done.err
        assert "8 tagged" in done.err
        assert Path(f"tags.{kind}").stat() == before
        page = Path("page.html").read_text("utf-8")
        assert page.count("data:image/jpeg;base64,") == 8
        assert broken["error"] in page


def test_a_file_made_with_something_else_is_refused(tag: Callable[..., Done]) -> None:
    write_images(Path("photos"), 2)
    assert tag("photos", "--out", "tags.jsonl").code == 0
    before = Path("tags.jsonl").read_bytes()
    for options, named in (
        (("--threshold", 0.5), "different threshold;"),
        (("--top", 1, "--labels", "dog,car"), "different labels, top;"),
    ):
        done = tag("photos", "--out", "tags.jsonl", *options)
        assert done.code == 2
        assert named in done.err
        assert done.err.count("\n") == 1
    Image.new("RGB", (9, 9)).save("photos/more.png")
    done = tag("photos", "--out", "tags.jsonl")
    assert (done.code, "different images;" in done.err) == (2, True)
    Path("notes.jsonl").write_text("mine\n")
    done = tag("photos", "--out", "notes.jsonl")
    assert (done.code, "not a file of tags" in done.err) == (2, True)
    assert Path("tags.jsonl").read_bytes() == before
    assert Path("notes.jsonl").read_text() == "mine\n"


def hostile_images(folder: Path) -> None:
    """Files `ok-…` that can be read, `bad-…` that cannot."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    photo = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8))

    def save(name: str, image: Image.Image = photo, **options: Any) -> bytes:
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(name[-3:], name.split(".")[-1])
        image.save(stream, kind, **options)
        (folder / name).write_bytes(stream.getvalue())
        return stream.getvalue()

    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        save(f"ok-turned-{turn}.jpg", exif=exif)
    for kind in ("gif", "bmp", "webp", "tif", "jp2", "ppm", "tga", "avif"):
        save(f"ok-kind.{kind}")
    save("ok-cmyk.jpg", photo.convert("CMYK"))
    save("ok-grey.jpg", photo.convert("L"))
    save("ok-progressive.jpg", progressive=True)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        save(f"ok-mode-{mode}.png", photo.convert(mode))
    save("ok-palette-alpha.png", photo.convert("P"), transparency=bytes(range(256)))
    deep = Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60))
    save("ok-16-bit.png", deep)
    save("ok-16-bit.tif", deep)
    save("ok-float.tif", Image.fromarray(np.ones((9, 9), dtype=np.float32)))
    save("ok-lab.tif", photo.convert("LAB"))
    frames = [photo.rotate(90 * turn) for turn in range(4)]
    for kind in ("gif", "webp", "png", "tif"):
        save(f"ok-animated.{kind}", save_all=True, append_images=frames)
    save("ok-one-pixel.png", photo.resize((1, 1)))
    save("ok-line.png", photo.resize((20000, 1)))
    save("ok-column.jpg", photo.resize((1, 20000)))
    whole = save("ok-wrong-name.png")
    (folder / "ok-wrong-name.jpg").write_bytes(whole)
    (folder / "ok-appended.png").write_bytes(whole + b"more" * 100)
    save("ok-UPPER.JPEG")
    (folder / "ok-ünï\N{SNOWMAN} \t\n,;'\".png").write_bytes(whole)
    (folder / os.fsdecode(b"ok-bytes-\xff.png")).write_bytes(whole)
    (folder / "ok-[1].png").write_bytes(whole)
    (folder / "ok-link.png").symlink_to("ok-wrong-name.png")
    (folder / "ok-folder.jpg").mkdir()
    (folder / "ok-folder.jpg" / "ok-inside.png").write_bytes(whole)

    jpeg = save("ok-plain.jpg")
    for part in (1, 2, 10, 100, len(jpeg) // 2, len(jpeg) - 200):
        (folder / f"bad-cut-{part}.jpg").write_bytes(jpeg[:part])
    for part in (8, 20, 40, len(whole) // 2):
        (folder / f"bad-cut-{part}.png").write_bytes(whole[:part])
    for kind in ("jpg", "png", "gif", "webp", "tif"):
        (folder / f"bad-empty.{kind}").touch()
        (folder / f"bad-noise.{kind}").write_bytes(draw.bytes(3000))
        (folder / f"bad-text.{kind}").write_text("<html>404 not found</html>")
    (folder / "bad-link.jpg").symlink_to("nowhere.jpg")
    (folder / "bad-loop.jpg").symlink_to("bad-loop.jpg")
    (folder / "bad-postscript.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(folder / "bad-pipe.jpg")
    for side in (11_000, 60_000):  # over our limit, and over the one at which Pillow gives up
        size = struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n"
        for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
            check = struct.pack(">I", zlib.crc32(kind + body))
            bomb += struct.pack(">I", len(body)) + kind + body + check
        (folder / f"bad-bomb-{side}.png").write_bytes(bomb)

    (folder / "notes.txt").write_text("skipped")
    (folder / ".hidden.png").write_bytes(whole)
    (folder / "folder-link").symlink_to(folder)


def test_hostile_files_are_tagged_or_get_a_reason(tag: Callable[..., Done]) -> None:
    hostile_images(Path("odd"))
    done = tag("odd", "--out", "tags.jsonl", "--threshold", 0, "--sheet", "page.html")
    assert done.code == 0, done.err
    rows = rows_of(Path("tags.jsonl"))
    assert len(rows) > 70
    names = {Path(row["file"]).name: row for row in rows}
    assert len(names) == len(rows)
    for name, row in names.items():
        assert ("error" in row) == name.startswith("bad-"), row
        assert len(row["tags"]) == (0 if "error" in row else 4)
        assert "odd/" not in row.get("error", "")
    for bomb in ("bad-bomb-11000.png", "bad-bomb-60000.png"):
        assert f"{MAX_PIXELS:,} are the most" in names[bomb]["error"]
    assert "No such file" in names["bad-link.jpg"]["error"]
    assert "ok-bytes-\\udcff.png" in names
    page = Path("page.html").read_text("utf-8")
    assert page.count("<img ") == sum(name.startswith("ok-") for name in names)
    assert "ok-inside.png" in names
    assert "3 skipped" in done.err
    # Turned upright, images differ; of 16 bits, not all above 255 is white.
    assert open_image(Path("odd/ok-turned-6.jpg")).size == (40, 60)
    assert open_image(Path("odd/ok-turned-3.jpg")).size == (60, 40)
    for deep in ("png", "tif"):
        assert 120 < np.asarray(open_image(Path(f"odd/ok-16-bit.{deep}"))).mean() < 135


def test_lines_on_the_standard_output(tag: Callable[..., Done]) -> None:
    hostile_images(Path("odd"))
    done = tag("odd/ok-ünï*", "odd/notes.txt", "odd/ok-plain.jpg", "--threshold", 0, "--top", 1)
    assert done.code == 0
    first, second, third = done.out.splitlines()
    assert first.startswith("odd/ok-ünï\N{SNOWMAN} \\t\\n,;'\".png\t")
    assert second.startswith("odd/notes.txt\terror: cannot be read as an image")
    assert third.split("\t")[1].rpartition(" ")[0] in NAMES
    done = tag("odd/bad-cut-1.jpg")
    assert done.code == 1
    assert "could not be read" in done.err
    assert len(done.out.splitlines()) == 1


def test_labels_without_tuning(tag: Callable[..., Done]) -> None:
    write_images(Path("photos"), 3)
    tag("photos", "--labels", "tractor, penguin", "--threshold", 0, "--out", "tags.jsonl")
    for row in rows_of(Path("tags.jsonl")):
        assert {tag["name"] for tag in row["tags"]} == {"tractor", "penguin"}


def test_labels_in_any_spelling_match_the_artifacts(
    tag: Callable[..., Done],
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images(Path("photos"), 2)
    every = ("photos", "--threshold", 0, "--out")
    assert tag(*every, "exact.jsonl", "--labels", "penguin,strawberry").code == 0
    done = tag(*every, "spelled.jsonl", "--labels", " Penguins,STRAWBERRY")
    assert done.code == 0, done.err
    assert Path("spelled.jsonl").read_bytes() == Path("exact.jsonl").read_bytes()
    # What was refused, or stopped before its first row, leaves nothing behind that is in the way.
    made = Artifact.load(artifact)
    first, *others = made.categories.categories
    named = first.model_copy(update={"synonyms": ("berry",), "kinds": ("wild strawberry",)})
    listed = CategoryList(categories=(named, *others))
    replace(made, categories=listed).save(Path("named").absolute())
    for labels, message in (
        ("penguin,Penguin", "--labels: label 'penguin' is given twice"),
        ("berry,strawberry", "--labels: label 'strawberry' is given twice, by name or synonym"),
        (
            "wild strawberries",
            "label 'wild strawberries' is a kind of 'strawberry': give 'strawberry'",
        ),
        ("a;b", "--labels: label 'a;b': 'a;b' must be one name"),
        ("do\u200bg", "--labels: label 'do\\u200bg': "),
    ):
        done = run_datafree(
            monkeypatch, capsys, "tag", "named", *every, "t.jsonl", "--labels", labels
        )
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert message in done.err
        assert not Path("t.jsonl").exists()
    folder = Path(".t.jsonl.parts")
    folder.mkdir(exist_ok=True)
    (folder / "made_with.json").write_text('{"labels": ["dog"]}')
    done = run_datafree(
        monkeypatch, capsys, "tag", "named", *every, "t.jsonl", "--labels", "Berries,car"
    )
    assert done.code == 0, done.err
    for row in rows_of(Path("t.jsonl")):
        assert {tag["name"] for tag in row["tags"]} == {"strawberry", "car"}


def test_listing_has_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.jpg", "b/10.jpg", "b/a/1.JPG", "a.png", "[x].png", "c.txt", ".d/e.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()

    def listed(*names: str) -> list[str]:
        listing = ImageListing(list(names))
        assert list(listing) == list(listing)
        return [str(file) for file in listing]

    below = ["b/10.jpg", "b/2.jpg", "b/a/1.JPG"]
    assert listed(".") == ["./[x].png", "./a.png", *(f"./{name}" for name in below)] or listed(
        "."
    ) == ["[x].png", "a.png", *below]
    assert listed("b", "a.png", "a.png") == [*below, "a.png", "a.png"]
    assert listed("*") == ["[x].png", "a.png", *below, "c.txt"]
    assert listed("b/*.jpg", "[x].png", "c.txt") == ["b/10.jpg", "b/2.jpg", "[x].png", "c.txt"]
    assert listed("**/*.[jJ]*") == below


def test_mistakes_are_reported_in_one_line(tag: Callable[..., Done]) -> None:
    write_images(Path("photos"), 1)
    Path("empty").mkdir()
    Path("file").touch()
    for arguments, message in (
        (("nowhere",), "nowhere: no such file"),
        (("photos", "x*.jpg"), "x*.jpg: no such file"),
        (("empty",), "empty: no images"),
        (("photos", "--threshold", 2), "--threshold: must be between 0 and 1 (got 2.0)"),
        (("photos", "--threshold", "nan"), "--threshold: must be between 0 and 1 (got nan)"),
        (("photos", "--top", 0), "--top: must be at least 1 (got 0)"),
        (("photos", "--workers", 0), "--workers: must be at least 1 (got 0)"),
        (("photos", "--workers", 9999), "--workers: 9999 with 1 CPUs"),
        (("photos", "--labels", "car,car"), "'car' is given twice"),
        (("photos", "--labels", ""), "label ''"),
        (("photos", "--out", "tags.txt"), "must end in .jsonl or .csv or .parquet"),
        (("photos", "--out", "file/tags.csv"), "--out: "),
        (("photos", "--sheet", "photos/000.png"), "must end in .html"),
    ):
        done = tag(*arguments)
        assert done.code == 2, (arguments, done)
        assert message in done.err, (arguments, done)
        assert done.err.count("\n") == 1, done.err


def test_unusable_artifacts_are_refused(
    tag: Callable[..., Done],
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images(Path("photos"), 1)
    older = Path("older")
    with publishing(older) as staging:
        for file in artifact.iterdir():
            text = file.read_bytes().replace(b'"version": 2', b'"version": 1')
            (staging / file.name).write_bytes(text)
    for folder, message in ((older, "artifact of version 1"), (Path("photos"), "no artifact")):
        done = run_datafree(monkeypatch, capsys, "tag", folder, "photos")
        assert done.code == 2
        assert message in done.err


# Runs the command line, and prints which of these it imported.
COMMAND_LINE = """
import sys
from orchestrator.cli import main
try:
    main()
finally:
    print([name for name in ("ray", "vllm") if name in sys.modules])
"""


def test_after_a_kill_it_resumes_without_ray_and_tags_nothing_twice(
    tag: Callable[..., Done], artifact: Path
) -> None:
    write_images(Path("photos"), 200)  # two parts

    def start(out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND_LINE, "tag", str(artifact), "photos", "--out", out]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def finish(out: str) -> None:
        process = start(out)
        assert process.communicate()[0] == "[]\n"
        assert process.returncode == 0

    finish("calm.jsonl")
    parts = Path(".killed.jsonl.parts")
    process = start("killed.jsonl")
    deadline = time.monotonic() + 120
    while not (kept := list(parts.glob("0*.jsonl"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert len(kept) == 1
    assert not Path("killed.jsonl").exists()
    done = tag("photos", "--out", "killed.jsonl", "--top", 1)
    assert (done.code, "different top;" in done.err) == (2, True)
    # What is kept is taken as it is: a mark in it comes through.
    rows = kept[0].read_bytes()
    kept[0].write_bytes(rows.replace(b"photos/000.png", b"photos/mark.png"))
    finish("killed.jsonl")
    made = Path("killed.jsonl").read_bytes()
    assert made.count(b"mark") == 1
    assert made.replace(b"mark", b"000") == Path("calm.jsonl").read_bytes()
    assert not parts.exists()


def test_formats_of_tools_are_written_from_rows_that_are_kept(tag: Callable[..., Done]) -> None:
    files = write_images(Path("photos"), 3)
    Path("photos/001.png").write_bytes(b"no image")
    files[2].with_suffix(".jpg").write_bytes(files[2].read_bytes())
    assert tag("photos", "--out", "tags.jsonl", "--threshold", 0).code == 0
    # YOLO cannot hold 002.jpg and 002.png, but what was tagged is there for another format.
    command = ("photos", "--threshold", 0, "--out", "made", "--format")
    done = tag(*command, "yolo")
    assert (done.code, "another image has this name" in done.err) == (2, True)
    (kept,) = Path(".made.parts").glob("0*.jsonl")
    kept.write_bytes(kept.read_bytes().replace(b"photos/000.png", b"photos/mark.png"))
    done = tag(*command, "datumaro")
    assert done.code == 0, done.err
    assert "3 tagged" in done.err and "1 could not be read" in done.err
    assert not kept.exists()
    made = json.loads(Path("made/annotations/default.json").read_bytes())
    tagged = [row for row in rows_of(Path("tags.jsonl")) if "error" not in row]
    tagged[0]["file"] = "photos/mark.png"
    labels = [label["name"] for label in made["categories"]["label"]["labels"]]
    assert labels == NAMES
    assert [
        (item["image"]["path"], [labels[a["label_id"]] for a in item["annotations"]])
        for item in made["items"]
    ] == [(row["file"], [t["name"] for t in row["tags"]]) for row in tagged]
    done = tag(*command, "datumaro")
    assert (done.code, "--out: made exists already" in done.err) == (2, True)
    Path("elsewhere").mkdir()
    for arguments, message in (
        (("--format", "cvat"), "--out: is missing, for --format cvat"),
        (("--format", "cvat", "--out", "elsewhere/x.xml"), "must be in a folder above the images"),
        (
            ("--format", "cvat", "--out", "x.jsonl"),
            "must be a file ending in .xml for --format cvat",
        ),
    ):
        done = tag("photos", *arguments)
        assert (done.code, done.err.count("\n"), message in done.err) == (2, 1, True), done.err
    assert list(Path("elsewhere").iterdir()) == []


def test_workers_give_the_same_rows_in_order(tag: Callable[..., Done]) -> None:
    files = write_images(Path("photos"), 135)
    files[3].write_bytes(b"")
    assert tag("photos", "--out", "alone.jsonl", "--threshold", 0).code == 0
    done = tag("photos", "--out", "spread.jsonl", "--threshold", 0, "--workers", 1)
    assert done.code == 0, done.err
    assert [row["file"] for row in rows_of(Path("spread.jsonl"))] == [str(file) for file in files]
    assert Path("spread.jsonl").read_bytes() == Path("alone.jsonl").read_bytes()


def test_files_are_taken_only_as_they_are_needed(
    tmp_path: Path, artifact: Path, lasting_cache: Path
) -> None:
    (file,) = write_images(tmp_path / "photos", 1)
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield file

    tagger = Tagger.load(artifact, "cpu", lasting_cache)
    stream = tag_files(tagger, endless(), TagRule(threshold=0), threads=2)
    assert len(next(stream).tags) == 4
    assert taken <= 4 * tagger.batch
    stream.close()
    started: list[int] = []
    ahead = started_ahead(range(9), lambda item: started.append(item) or item, 3)
    assert next(ahead) == 0
    assert started == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 9))
