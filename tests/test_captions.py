"""Captions of one's own and of templates, and the files that captions are kept in."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prompt_tuning.captions import (
    Caption,
    CaptionSettings,
    CaptionWriter,
    PackedCaptions,
    captions_at,
    is_held_out,
    read_caption_file,
    read_captions,
    template_captions,
)
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.parquet_rows import column_values, count_rows

DOG, CAR, CAT = range(3)
CATEGORIES = CategoryList(
    categories=(Category(name="dog"), Category(name="car"), Category(name="cat"))
)


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_words 9 is above max_words 5"):
        CaptionSettings(min_words=9, max_words=5)


def test_own_sentences_with_and_without_labels(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(
        "A dog in a car.\n\n"
        "My faithful companion sleeps.\tdog\n"
        "He chases his friend.\t cat ; dog;dog\n"
        "A dog with no label given.\t\n",
        "utf-8",
    )
    assert list(read_caption_file(file, CATEGORIES)) == [
        Caption("A dog in a car.", (DOG, CAR), "file"),
        Caption("My faithful companion sleeps.", (DOG,), "file"),
        Caption("He chases his friend.", (DOG, CAT), "file"),
        Caption("A dog with no label given.", (DOG,), "file"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_own_labels_are_found_in_any_spelling(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "own.tsv"
    file.write_bytes("It sleeps.\tDogs\r\nIt sits.\tT_SHIRT; Couches ;sofa\r\n".encode(encoding))
    sofa = Category(name="sofa", synonyms=("couch",))
    listed = CategoryList(categories=(Category(name="dog"), sofa, Category(name="t-shirt")))
    assert [caption.labels for caption in read_caption_file(file, listed)] == [(0,), (1, 2)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("A bird.\tbird", r"row 3: 'bird' is not in the category list"),
        ("A bird sings.", r"row 3: the sentence names no category; add <TAB>label"),
    ],
)
def test_own_sentences_that_do_not_fit_are_refused_by_row(
    tmp_path: Path, line: str, complaint: str
) -> None:
    file = tmp_path / "own.txt"
    file.write_text(f"A dog.\n\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=rf"own\.txt, {complaint}$"):
        list(read_caption_file(file, CATEGORIES))


def test_own_sentences_of_an_editor_that_marks_its_files(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes("A dog in a car.\r\nA cat.\tcat\r\n".encode("utf-8-sig"))
    assert [(c.text, c.labels) for c in read_caption_file(file, CATEGORIES)] == [
        ("A dog in a car.", (DOG, CAR)),
        ("A cat.", (CAT,)),
    ]


def test_template_captions_are_eighty_sentences_about_each_category() -> None:
    captions = list(template_captions(CATEGORIES))
    assert len({caption.text for caption in captions}) == 80 * len(CATEGORIES)
    for index, name in enumerate(CATEGORIES.names):
        of_category = [c.text for c in captions if c.labels == (index,)]
        assert len(of_category) == 80
        assert all(f" {name}" in text and text.endswith(".") for text in of_category)
    assert captions[0] == Caption("a bad photo of a dog.", (DOG,), "template")


@pytest.mark.parametrize(
    "captions", [[], [Caption("A dög.", (0, 2), "file"), Caption("-", (), "x")]]
)
def test_captions_read_back_as_written(tmp_path: Path, captions: list[Caption]) -> None:
    with CaptionWriter(tmp_path / "captions.parquet", CATEGORIES) as writer:
        for caption in captions:
            writer.write_caption(caption)
    assert list(read_captions(tmp_path / "captions.parquet", CATEGORIES)) == captions


def test_packed_captions_are_the_same_captions() -> None:
    captions = [Caption(f"Sentence {n}, dög.", tuple(range(n % 4)), "file") for n in range(9000)]
    captions.append(Caption("-", (2,), "template"))
    packed = PackedCaptions(iter(captions))
    assert len(packed) == 9001
    assert list(packed) == list(packed) == captions
    assert list(PackedCaptions([])) == []


def test_many_captions_keep_where_they_are_from(tmp_path: Path) -> None:
    with CaptionWriter(tmp_path / "captions.parquet", CATEGORIES) as writer:
        for n in range(10_000):
            caption = Caption(f"Sentence {n}.", (n % 3,), "specific")
            writer.write_caption(caption, question="dog:", model="tiny", seed=n, key="abc")
    table = pq.read_table(tmp_path / "captions.parquet")
    assert table.column_names == ["text", "labels", "kind", "question", "model", "seed", "key"]
    assert table.num_rows == 10_000
    assert table.slice(8500, 1).to_pylist() == [
        {
            "text": "Sentence 8500.",
            "labels": ["car"],
            "kind": "specific",
            "question": "dog:",
            "model": "tiny",
            "seed": 8500,
            "key": "abc",
        }
    ]


def test_rows_are_read_from_their_row_groups(tmp_path: Path) -> None:
    file = tmp_path / "captions.parquet"
    captions = [Caption(f"Sentence {n}.", (n % 3,), "file") for n in range(20_000)]
    with CaptionWriter(file, CATEGORIES) as writer:
        for caption in captions:
            writer.write_caption(caption)
    assert count_rows(file) == 20_000
    texts = [caption.text for caption in captions]
    for rows in (range(8000, 8500), range(0, 512), range(19_968, 20_000), range(5, 5)):
        assert column_values(file, "text", rows) == texts[rows.start : rows.stop]
    rows = [19_999, 8191, 8192, 3, 8191]
    found = captions_at(file, CATEGORIES, rows)
    assert found == {row: captions[row] for row in rows}
    assert captions_at(file, CATEGORIES, []) == {}


def test_what_is_held_out_depends_on_the_text_alone_and_grows_with_the_share() -> None:
    captions = [Caption(f"Sentence number {n}.", (n % 3,), "specific") for n in range(4000)]
    held_out = {c.text for c in captions if is_held_out(c, 0.1)}
    assert len(held_out) / len(captions) == pytest.approx(0.1, abs=0.015)
    relabelled = [Caption(c.text, (), "file") for c in reversed(captions)]
    assert {c.text for c in relabelled if is_held_out(c, 0.1)} == held_out
    assert held_out < {c.text for c in captions if is_held_out(c, 0.2)}
    # Another run of the same captions, in another version, must hold out the same ones.
    assert [n for n in range(40) if is_held_out(captions[n], 0.1)] == [1, 6, 8, 19]
