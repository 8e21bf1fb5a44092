"""exiftool and exiv2 read our sidecars, and what they write in between is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from sidecar_forms import PROGRAMS, version

from prompt_tuning.sidecars.editing import apply, tagged, untagged
from prompt_tuning.sidecars.merge import Suggestion, rejected, users
from prompt_tuning.sidecars.packet import Packet

TAGS = {"dog": Suggestion(0.9, "animals|dog"), "Käse & <Brot>": Suggestion(0.5, "food|Käse")}
CAR = {"dog": Suggestion(0.8, "things|dog"), "car": Suggestion(0.7, "things|car")}

# exiv2 does not open the other forms, also without our tags.
READ = ("darktable", "digiKam", "Lightroom", "exiftool")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("exiftool") and shutil.which("exiv2")),
        reason="exiftool and exiv2 are missing (apt-get install exiv2 libimage-exiftool-perl)",
    ),
]


def tag(file: Path, suggestions: dict[str, Suggestion], version: str) -> None:
    apply(file, lambda content: tagged(content, version, suggestions)[0])


def call(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, encoding="utf-8", timeout=60
    ).stdout


def by_exiftool(file: Path) -> dict[str, object]:
    [found] = json.loads(call("exiftool", "-j", "-G1", "-XMP:all", file))
    return dict(found)


def by_exiv2(file: Path, key: str) -> list[str]:
    line = call("exiv2", "-K", key, "-Pv", file).strip()
    return line.split(", ") if line else []


@pytest.mark.parametrize("program", [None, *READ])
def test_both_read_what_we_write(tmp_path: Path, program: str | None) -> None:
    file = tmp_path / "a.jpg.xmp"
    if program:
        file.write_text(PROGRAMS[program], "utf-8")
    before = call("exiv2", "-PXkv", file) if program else ""
    tag(file, TAGS, "v1")
    theirs = ["beach", "Tom & Ann"] if program else []
    found = by_exiftool(file)
    assert found["XMP-dc:Subject"] == [*theirs, *TAGS]
    assert found["XMP-datafree:Artifact"] == "v1"
    assert by_exiv2(file, "Xmp.dc.subject") == [*theirs, *TAGS]
    assert by_exiv2(file, "Xmp.lr.hierarchicalSubject")[-2:] == ["animals|dog", "food|Käse"]
    call("exiftool", "-validate", "-warning", "-error", file)
    if program:
        assert found["XMP-xmp:Rating"] == 4
        apply(file, lambda content: untagged(content)[0])
        assert call("exiv2", "-PXkv", file) == before


@pytest.mark.parametrize("program", [None, *READ])
@pytest.mark.parametrize("editor", ["exiftool", "exiv2"])
def test_their_edits_between_our_runs_are_kept(
    tmp_path: Path, program: str | None, editor: str
) -> None:
    file = tmp_path / "a.jpg.xmp"
    if program:
        file.write_text(PROGRAMS[program], "utf-8")
    tag(file, TAGS, "v1")
    if editor == "exiftool":
        call(
            *("exiftool", "-overwrite_original", "-XMP-dc:Subject-=dog"),
            *("-XMP-dc:Subject+=harbour", "-XMP-xmp:Rating=2", "-XMP-photoshop:City=Kiel", file),
        )
    else:
        left = [name for name in by_exiv2(file, "Xmp.dc.subject") if name != "dog"]
        sets = [f"set Xmp.dc.subject XmpBag {name}" for name in [*left, "harbour"]]
        commands = ["del Xmp.dc.subject", *sets, "set Xmp.xmp.Rating 2"]
        commands += ["set Xmp.photoshop.City Kiel"]
        call("exiv2", *(word for one in commands for word in ("-M", one)), file)
    theirs = {"beach", "Tom & Ann"} if program else set()
    keywords = Packet(file.read_bytes()).keywords
    assert {*users(keywords)} == {*theirs, "harbour"}
    assert rejected(keywords) == ("dog",)

    tag(file, CAR, "v2")
    written = version(file)
    tag(file, CAR, "v2")
    assert version(file) == written
    found = by_exiftool(file)
    assert {*map(str, found["XMP-dc:Subject"])} == {*theirs, "harbour", "car"}  # type: ignore[call-overload]
    assert (found["XMP-xmp:Rating"], found["XMP-photoshop:City"]) == (2, "Kiel")
    assert by_exiv2(file, "Xmp.lr.hierarchicalSubject")[-1] == "things|car"

    apply(file, lambda content: untagged(content)[0])
    found = by_exiftool(file)
    subject = found["XMP-dc:Subject"]
    assert {*(subject if isinstance(subject, list) else [subject])} == {*theirs, "harbour"}
    assert (found["XMP-xmp:Rating"], found["XMP-photoshop:City"]) == (2, "Kiel")
    assert not [name for name in found if "datafree" in name]
    assert b"urn:datafree" not in file.read_bytes()


def test_a_file_that_another_tool_only_saved_again_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg.xmp"
    tag(file, TAGS, "v1")
    call("exiftool", "-overwrite_original", "-XMP-xmp:Rating=2", file)
    call("exiftool", "-overwrite_original", "-XMP-xmp:Rating=", file)
    call("exiv2", "-M", "set Xmp.xmp.Rating 2", "-M", "del Xmp.xmp.Rating", file)
    apply(file, lambda content: untagged(content)[0])
    assert not file.exists()
