"""From answers to captions with labels, and the files that captions are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from prompt_tuning.captions import (
    Answer,
    Caption,
    CaptionFilter,
    CaptionSettings,
    is_held_out,
    read_caption_file,
    read_captions,
    write_captions,
)
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.questions import Question

DOG, CAR, CAT = range(3)
CATEGORIES = CategoryList(
    categories=(Category(name="dog"), Category(name="car"), Category(name="cat"))
)
SHOWN = ("A red umbrella lies on the wooden bench.",)


def question(*categories: int) -> Question:
    return Question("relationship", categories, "Describe.", "dog:", SHOWN, seed=0)


def judge(*texts: str, asked: tuple[int, ...] = (DOG, CAR), finished: bool = True) -> list[object]:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings(min_words=4, max_words=12))
    return list(fresh.sort((question(*asked), Answer(text, finished, 9)) for text in texts))


def test_a_good_answer_becomes_a_caption_with_its_kind() -> None:
    assert judge('  "A dog\n sits in a  car." ') == [
        Caption("A dog sits in a car.", (DOG, CAR), "relationship")
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A dog.", "too short or too long"),
        (f"A dog {'very ' * 12}slowly sits.", "too short or too long"),
        ("A dog sits in the", "truncated"),
        ("A dog sits in a café.", "not plain English"),
        ("As an AI I see no dog.", "refusal"),
        ("Things seen here: a dog.", "list or markup"),
        ("A dog, a bone, a ball, a leash, a bowl.", "list or markup"),
        ("A dog sits and a dog sits and a dog.", "repeats itself"),
        ("A bird sits in a tree.", "does not name what was asked for"),
        ("A cat sits in a tree.", "does not name what was asked for"),
        ("A red umbrella lies on the wooden dog bench.", "copies an example"),
    ],
)
def test_each_reason_to_drop_an_answer(text: str, reason: str) -> None:
    assert judge(text) == [reason]


def test_an_answer_cut_by_the_token_limit_is_truncated() -> None:
    assert judge("A dog sits in the car.", finished=False) == ["truncated"]


def test_labels_are_gained_and_lost_by_what_the_sentence_names() -> None:
    gained, lost = judge("A cat and a dog share a car.", "A dog sleeps under an old tree.")
    assert isinstance(gained, Caption)
    assert gained.labels == (DOG, CAR, CAT)
    assert isinstance(lost, Caption)
    assert lost.labels == (DOG,)


def test_near_duplicates_are_dropped_once_kept() -> None:
    first = "A brown dog sleeps under the table."
    kept, same, reordered, other = judge(
        first, first, "Under a table the brown dog sleeps.", "A brown dog sleeps under the chair."
    )
    assert isinstance(kept, Caption)
    assert same == reordered == "duplicate or nearly"
    assert isinstance(other, Caption)


def test_sentences_that_differ_in_a_short_name_are_no_duplicates() -> None:
    dog, car = judge("A dog stands on the grass.", "A car stands on the grass.")
    assert isinstance(dog, Caption)
    assert isinstance(car, Caption)


def test_a_dropped_sentence_does_not_make_a_later_one_a_duplicate() -> None:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings())
    answer = Answer("A brown dog sleeps under the table.", True, 9)
    dropped, kept = fresh.sort([(question(CAR), answer), (question(DOG), answer)])
    assert dropped == "does not name what was asked for"
    assert isinstance(kept, Caption)


def test_a_filter_remembers_earlier_answers() -> None:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings())
    pair = (question(DOG), Answer("A brown dog sleeps under the table.", True, 9))
    assert isinstance(fresh.sort([pair])[0], Caption)
    assert fresh.sort([pair]) == ["duplicate or nearly"]


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
    assert read_caption_file(file, CATEGORIES) == [
        Caption("A dog in a car.", (DOG, CAR), "file"),
        Caption("My faithful companion sleeps.", (DOG,), "file"),
        Caption("He chases his friend.", (DOG, CAT), "file"),
        Caption("A dog with no label given.", (DOG,), "file"),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("A bird.\tbird", r"row 3: 'bird' is no category of the list"),
        ("A bird sings.", r"row 3: the sentence names no category; add <TAB>label"),
    ],
)
def test_own_sentences_that_do_not_fit_are_refused_by_row(
    tmp_path: Path, line: str, complaint: str
) -> None:
    file = tmp_path / "own.txt"
    file.write_text(f"A dog.\n\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=rf"own\.txt, {complaint}$"):
        read_caption_file(file, CATEGORIES)


def test_own_sentences_of_an_editor_that_marks_its_files(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes("A dog in a car.\r\nA cat.\tcat\r\n".encode("utf-8-sig"))
    assert [(c.text, c.labels) for c in read_caption_file(file, CATEGORIES)] == [
        ("A dog in a car.", (DOG, CAR)),
        ("A cat.", (CAT,)),
    ]


@pytest.mark.parametrize(
    "captions", [[], [Caption("A dög.", (0, 2), "file"), Caption("-", (), "x")]]
)
def test_captions_read_back_as_written(tmp_path: Path, captions: list[Caption]) -> None:
    write_captions(tmp_path / "captions.parquet", captions)
    assert read_captions(tmp_path / "captions.parquet") == captions


def test_what_is_held_out_depends_on_the_text_alone_and_grows_with_the_share() -> None:
    captions = [Caption(f"Sentence number {n}.", (n % 3,), "specific") for n in range(4000)]
    held_out = {c.text for c in captions if is_held_out(c, 0.1)}
    assert len(held_out) / len(captions) == pytest.approx(0.1, abs=0.015)
    relabelled = [Caption(c.text, (), "file") for c in reversed(captions)]
    assert {c.text for c in relabelled if is_held_out(c, 0.1)} == held_out
    assert held_out < {c.text for c in captions if is_held_out(c, 0.2)}
    # Another run of the same captions, in another version, must hold out the same ones.
    assert [n for n in range(40) if is_held_out(captions[n], 0.1)] == [1, 6, 8, 19]
