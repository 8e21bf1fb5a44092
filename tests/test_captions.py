"""From answers to captions with labels, and the files that captions are kept in."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prompt_tuning.captions import (
    Answer,
    Caption,
    CaptionFilter,
    CaptionSettings,
    CaptionWriter,
    is_held_out,
    read_caption_file,
    read_captions,
)
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.questions import Question
from prompt_tuning.knowledge.template_captions import template_captions

DOG, CAR, CAT = range(3)
CATEGORIES = CategoryList(
    categories=(Category(name="dog"), Category(name="car"), Category(name="cat"))
)
SHOWN = ("A red umbrella lies on the wooden bench.",)


def question(*asked: int) -> Question:
    names = tuple(CATEGORIES.names[category] for category in asked)
    return Question("relationship", names, names, "Describe.", "dog:", SHOWN, seed=0)


def judge(*texts: str, asked: tuple[int, ...] = (DOG, CAR), finished: bool = True) -> list[object]:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings(min_words=4, max_words=12))
    return [fresh.judge(question(*asked), Answer(text, finished, 9)) for text in texts]


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
        ("Un dog muy grande corre.", "not English"),
        ("A dog sits in the 公园 now.", "not English"),
        ("As an AI I see no dog.", "refusal"),
        ("Things seen here: a dog.", "list or markup"),
        ("A dog, a bone, a ball, a leash, a bowl.", "list or markup"),
        ("1. A dog sits in a car.", "list or markup"),
        ("Der dog steht in der Stadt an dem Haus.", "not English"),
        ("Una pizza con queso y un dog.", "not English"),
        ("Sorry, the dog is out of sight.", "refusal"),
        ("I cannot see the dog in the photo.", "refusal"),
        ("Describe a photo of a dog in a sentence.", "refusal"),
        ("There is no dog in this picture.", "says what is not there"),
        ("A quiet street without any dog.", "says what is not there"),
        ("The large dog is an animal of the home.", "defines instead of describing"),
        ("A dog sits and a dog sits and a dog.", "repeats itself"),
        ("A bird sits in a tree.", "does not name what was asked for"),
        ("A cat sits in a tree.", "does not name what was asked for"),
        ("A red umbrella lies on the wooden dog's bench.", "copies an example"),
        ("A dog sees how an umbrella lies on the wooden chair.", "copies an example"),
    ],
)
def test_each_reason_to_drop_an_answer(text: str, reason: str) -> None:
    assert judge(text) == [reason]


@pytest.mark.parametrize(
    "text",
    [
        "There is a dog on the sofa.",
        "On the sofa is a large dog.",
        "A vintage car from 1965.",
        "The clock above the car shows 3:15.",
        "Sunlight warms several sleepy dogs.",
        "A dog in front of a car in front of a house.",
    ],
)
def test_good_captions_are_kept(text: str) -> None:
    (kept,) = judge(text)
    assert isinstance(kept, Caption)


def test_a_sentence_may_list_as_many_things_as_were_asked_for() -> None:
    names = ("dog", "car", "cat", "cow", "bus")
    categories = CategoryList(categories=tuple(Category(name=name) for name in names))
    asked = Question("relationship", names, names, "Describe.", "dog:", (), seed=0)
    text = "A dog, a car, a cat, a cow, and a bus stand on the road."
    kept = CaptionFilter(categories, CaptionSettings()).judge(asked, Answer(text, True, 9))
    assert isinstance(kept, Caption)
    assert kept.labels == (0, 1, 2, 3, 4)


def test_another_colour_or_age_is_no_duplicate() -> None:
    for fate in judge("A red car is here.", "An old car is here.", "A big car is here."):
        assert isinstance(fate, Caption)


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
    dropped, kept = (fresh.judge(question(asked), answer) for asked in (CAR, DOG))
    assert dropped == "does not name what was asked for"
    assert isinstance(kept, Caption)


def test_a_filter_remembers_earlier_answers() -> None:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings())
    pair = (question(DOG), Answer("A brown dog sleeps under the table.", True, 9))
    assert isinstance(fresh.judge(*pair), Caption)
    assert fresh.judge(*pair) == "duplicate or nearly"


def test_an_example_that_names_a_category_does_not_leak_it() -> None:
    shown = ("A black cat sleeps on the sofa.",)
    asked = Question("specific", ("dog",), ("dog",), "Describe.", "dog:", shown, seed=0)
    fresh = CaptionFilter(CATEGORIES, CaptionSettings())
    leaked = fresh.judge(asked, Answer("A dog chases a cat in the park.", True, 9))
    assert leaked == "copies an example"
    kept = fresh.judge(asked, Answer("A dog chases a car in the park.", True, 9))
    assert isinstance(kept, Caption)


def test_unreviewed_kinds_count_as_naming_their_category() -> None:
    kinds = {"dog": ("beagle", "spitz"), "car": ("beetle", "spitz"), "cat": ("car",)}
    fresh = CaptionFilter(CATEGORIES, CaptionSettings(), kinds)
    beagle, spitz, car = (
        fresh.judge(question(DOG, CAR), Answer(f"A small {word} is in the park.", True, 9))
        for word in ("beagle", "spitz", "car")
    )
    assert isinstance(beagle, Caption)
    assert beagle.labels == (DOG,)
    # A word of two categories stands for none, a reviewed one for its own.
    assert spitz == "does not name what was asked for"
    assert isinstance(car, Caption)
    assert car.labels == (CAR,)


def test_typographic_quotes_and_dashes_are_plain_text() -> None:
    (kept,) = judge("\u201cA dog\u2019s car \u2013 a caf\u00e9 car \u2013 is in the park.\u201d")
    assert isinstance(kept, Caption)
    assert kept.text == "A dog's car - a caf\u00e9 car - is in the park."


def test_what_no_engine_could_answer_is_no_caption() -> None:
    fresh = CaptionFilter(CATEGORIES, CaptionSettings())
    answer = Answer("", False, 0, failure="ValueError: too long")
    assert fresh.judge(question(DOG), answer) == "not answered"


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
    assert read_captions(tmp_path / "captions.parquet", CATEGORIES) == captions


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


def test_what_is_held_out_depends_on_the_text_alone_and_grows_with_the_share() -> None:
    captions = [Caption(f"Sentence number {n}.", (n % 3,), "specific") for n in range(4000)]
    held_out = {c.text for c in captions if is_held_out(c, 0.1)}
    assert len(held_out) / len(captions) == pytest.approx(0.1, abs=0.015)
    relabelled = [Caption(c.text, (), "file") for c in reversed(captions)]
    assert {c.text for c in relabelled if is_held_out(c, 0.1)} == held_out
    assert held_out < {c.text for c in captions if is_held_out(c, 0.2)}
    # Another run of the same captions, in another version, must hold out the same ones.
    assert [n for n in range(40) if is_held_out(captions[n], 0.1)] == [1, 6, 8, 19]
