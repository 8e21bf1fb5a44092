"""Which answers become captions, with which labels, and why others are dropped."""

from __future__ import annotations

import pytest

from prompt_tuning.captions import Caption, CaptionSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.dialogue import Answer, Question

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
