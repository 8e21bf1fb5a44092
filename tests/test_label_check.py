"""Labels that no sentence could get are found before any is written."""

from __future__ import annotations

import pytest

from prompt_tuning.captions import Caption, CaptionSettings
from prompt_tuning.categories import BUILT_IN, Category, CategoryList, built_in
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.label_check import DroppedLabel, dropped_labels

ODD = (
    "traffic_light",
    "C#",
    "<b>",
    "TV: old",
    "狗",
    "собака",
    "no parking sign",
    "is not",
    "Hund",
    "der Hund",
    "Tür mit dem Fenster",
    "b\u0131cycle",
    "\u017faw",
    "TAKS\u0130",
    "driver\u2019s licence",
    "\u201cquoted\u201d sign",
    "New York\u2013London",
    "no. 5",
    "1. FC",
    "sorry sign",
    "_background_",
    "clouds",
    "can",
    "orange",
    "Turkey",
    "sunny",
    "running",
)


def labels(*names: str) -> CategoryList:
    return CategoryList.model_construct(categories=tuple(Category(name=name) for name in names))


def test_labels_may_hold_any_signs_and_languages() -> None:
    assert dropped_labels(labels(*ODD)) == []


@pytest.mark.parametrize("name", ODD)
def test_a_sentence_is_judged_without_its_labels(name: str) -> None:
    categories = labels("dog", name)
    question = Question("relationship", (name,), (name,), "", "", (), seed=0)
    judge = CaptionFilter(categories, CaptionSettings()).judge
    fate = judge(question, Answer(f"Three people look at the {name} in the park.", True, 9))
    assert isinstance(fate, Caption)
    assert fate.labels == (1,)
    dropped = judge(question, Answer(f"There is no {name} in the park today.", True, 9))
    assert dropped == "says what is not there"


def test_a_label_of_no_word_or_of_the_words_of_another_never_gets_a_sentence() -> None:
    markup, unnamed = "list or markup", "does not name what was asked for"
    assert dropped_labels(labels("dog", "_", "Stra\u00dfe", "STRASSE")) == [
        DroppedLabel("_", markup, never=True),
        DroppedLabel("STRASSE", unnamed, never=True),
    ]
    helped = CategoryList(categories=(Category(name="_", synonyms=("dog",)), Category(name="cat")))
    assert dropped_labels(helped) == [DroppedLabel("_", markup, never=False)]


def test_a_word_that_is_hardly_ever_read_as_a_noun_is_reported() -> None:
    unnamed = "does not name what was asked for"
    assert dropped_labels(labels("dog", "skip", "watch", "spill", "saw")) == [
        DroppedLabel("skip", unnamed, never=False),
        DroppedLabel("spill", unnamed, never=False),
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_labels_all_get_sentences(name: str) -> None:
    assert dropped_labels(built_in(name)) == []
