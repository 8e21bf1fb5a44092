"""`review.csv`: appended to, torn, edited by hand, and read as labels."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.folder import read_folder
from prompt_tuning.datasets.labelled_images import readable
from prompt_tuning.datasets.review_answers import (
    FILE,
    Answer,
    append_answer,
    is_writable_name,
    read_answers,
)

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog"),
        Category(name="sofa", synonyms=("couch",)),
        Category(name="cat"),
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_later_rows_win_and_names_of_any_kind_come_back(tmp_path: Path) -> None:
    names = ['a "quoted", one.jpg', " spaces .jpg", "=1+1.jpg", "ü/日本 😀.jpg", "…"]
    for name in names:
        assert is_writable_name(name)
        for answer in ("yes", "unknown", "no"):
            append_answer(tmp_path, name, "dog", answer)
    append_answer(tmp_path, names[0], "dog", "yes")
    assert read_answers(tmp_path) == {
        (name, "dog"): "yes" if name == names[0] else "no" for name in names
    }
    assert (tmp_path / FILE).read_text("utf-8").startswith("file,label,answer\n")
    for name in ("a\nb.jpg", "a\x00.jpg", "a\x7f.jpg", "\udcff.jpg", "a\u2028.jpg", "a\r.jpg"):
        assert not is_writable_name(name)
        before = (tmp_path / FILE).read_bytes()
        with pytest.raises(ValueError, match="control characters"):
            append_answer(tmp_path, name, "dog", "yes")
        assert (tmp_path / FILE).read_bytes() == before


def test_wherever_a_writer_was_killed_all_earlier_answers_are_there(tmp_path: Path) -> None:
    rows: list[tuple[str, Answer]] = [("ä,b.jpg", "no"), ("c.jpg", "unknown")]
    for name, answer in rows:
        append_answer(tmp_path, name, "dog", answer)
    whole = (tmp_path / FILE).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        # A last row that lacks only its end is whole.
        answered = sum(end - 1 <= size for end in ends[1:])
        expected = {(name, "dog"): answer for name, answer in rows[:answered]}
        assert read_answers(tmp_path) == expected, size
        append_answer(tmp_path, "e.jpg", "dog", "yes")
        assert read_answers(tmp_path) == {**expected, ("e.jpg", "dog"): "yes"}, size


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    append_answer(tmp_path, "a.jpg", "dog", "yes")
    before = (tmp_path / FILE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_answer(tmp_path, "b.jpg", "dog", "no")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"a.png,dog", "row 3: must be file,label,answer"),
        (b"a.png,dog,maybe", "row 3: answer must be yes, no, unknown or empty"),
        (b"\xff.png,dog,yes", "not UTF-8"),
        (b"a\rb.png,dog,yes", "row 3: must be file,label,answer"),
        (b"a" * 200_000 + b",dog,yes", "row 3: field larger than"),
        (b"../a.png,dog,yes", "row 3: file must be a path below this folder"),
        (b"sub/../../a.png,dog,yes", "row 3: file must be"),
        (b"/etc/passwd,dog,yes", "row 3: file must be"),
        (b"..\\a.png,dog,yes", "row 3: file must be"),
        (b" ../a.png,dog,yes", "row 3: file must be"),
        (b"\\udc2e\\udc2e/a.png,dog,yes", "row 3: file must be"),
    ],
)
def test_wrong_rows_are_refused(folder: Path, row: bytes, message: str) -> None:
    append_answer(folder, "a.png", "dog", "yes")
    rows = (folder / FILE).read_bytes()
    for end in (b"\n", b"", b"\r\n"):
        if end == b"" and row == b"a.png,dog":
            continue  # the writer may have been killed here
        (folder / FILE).write_bytes(rows + row + end)
        append_answer(folder, "b.png", "dog", "no")
        assert (folder / FILE).read_bytes().startswith(rows + row)  # nobody lost it
    with pytest.raises(ValueError, match=message) as raised:
        read_folder(CATEGORIES, folder)
    assert str(raised.value).startswith(str(folder / FILE))


def test_edited_by_hand_on_windows(folder: Path) -> None:
    content = "\ufefffile,label,answer\r\n\r\na.png,dog,YES \r\nb.png,Couches,no\r\nc.png,cat,yes"
    (folder / FILE).write_bytes(content.encode())
    images = read_folder(CATEGORIES, folder)
    assert [file.name for file in images.files] == ["a.png", "b.png", "c.png"]
    assert images.labels.tolist() == [[True, False, False], [False] * 3, [False, False, True]]
    assert images.ignored is not None
    assert (~images.ignored).tolist() == np.eye(3, dtype=bool).tolist()


def test_edited_on_an_old_macintosh(folder: Path) -> None:
    content = b"file,label,answer\ra.png,dog,yes\rb.png,dog,no\r"
    (folder / FILE).write_bytes(content)
    assert read_answers(folder) == {("a.png", "dog"): "yes", ("b.png", "dog"): "no"}
    append_answer(folder, "c.png", "dog", "no")
    assert (folder / FILE).read_bytes() == content + b"c.png,dog,no\n"
    (folder / FILE).write_bytes(content + b"c.png,do")  # torn
    assert len(read_answers(folder)) == 2
    append_answer(folder, "c.png", "dog", "no")
    assert (folder / FILE).read_bytes() == content + b"c.png,dog,no\n"


def test_one_line_of_an_editor_is_not_taken_for_a_torn_one(folder: Path) -> None:
    (folder / FILE).write_bytes(b"a.png;dog;yes")
    with pytest.raises(ValueError, match="row 1: must be file,label,answer"):
        read_answers(folder)


def test_an_undone_answer_is_none_again(folder: Path) -> None:
    (folder / "labels.csv").write_text("a.png,dog\n")
    for name in ("a.png", "b.png"):
        append_answer(folder, name, "dog", "no")
        append_answer(folder, name, "dog", None)
    append_answer(folder, "b.png", "cat", "yes")
    assert read_answers(folder) == {("b.png", "cat"): "yes"}
    images = read_folder(CATEGORIES, folder)
    assert images.labels.tolist() == [[True, False, False], [False, False, True]]
    assert images.ignored is not None
    assert images.ignored.tolist() == [[False] * 3, [True, True, False]]


def test_answers_win_over_labels_and_stand_alone(folder: Path) -> None:
    for name, label, answer in (
        ("sub/d.png", "cat", "yes"),
        ("a.png", "dog", "no"),
        ("a.png", "cat", "unknown"),
        ("sub/d.png", "dog", "no"),
        ("gone.png", "dog", "yes"),
        ("b.png", "giraffe", "yes"),  # of another artifact
    ):
        append_answer(folder, name, label, answer)  # type: ignore[arg-type]
    alone = read_folder(CATEGORIES, folder)
    # Whoever reads the images reports the one that is gone.
    assert [file.name for file in alone.files] == ["d.png", "a.png", "gone.png"]
    assert readable(alone)[1].keys() == {folder / "gone.png"}
    assert alone.other_classes == ("giraffe",)

    (folder / "labels.csv").write_text("a.png,dog;couch\nb.png,cat\n")
    images = read_folder(CATEGORIES, folder)
    shown = {
        file.name: "".join(
            "?" if unknown else "+" if label else "-"
            for label, unknown in zip(labels, ignored, strict=True)
        )
        for file, labels, ignored in zip(
            images.files,
            images.labels,
            images.ignored,
            strict=True,  # type: ignore[arg-type]
        )
    }
    assert shown == {"a.png": "-+?", "b.png": "--+", "d.png": "-?+", "gone.png": "+??"}
