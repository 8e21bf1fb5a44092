"""`review.csv`: appended to, torn, edited by hand, and read as labels."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.folder import read_folder
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
        (b"a.png,dog,maybe", "row 3: answer must be yes, no or unknown"),
        (b"\xff.png,dog,yes", "not UTF-8"),
    ],
)
def test_wrong_rows_are_refused(folder: Path, row: bytes, message: str) -> None:
    append_answer(folder, "a.png", "dog", "yes")
    with (folder / FILE).open("ab") as file:
        file.write(row + b"\n")
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
    assert [file.name for file in alone.files] == ["d.png", "a.png"]
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
    assert shown == {"a.png": "-+?", "b.png": "--+", "d.png": "-?+"}
