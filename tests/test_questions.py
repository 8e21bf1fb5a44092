"""The questions that the language model is asked."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.noun_matching import NounMatcher
from prompt_tuning.questions import Question, QuestionSettings, QuestionWriter, parse_attributes

ATTRIBUTES = ["colour", "size", "place"]
# Four of these are in the examples that the questions show.
CATEGORIES = CategoryList(
    categories=(
        Category(name="dog", kinds=("sheepdog", "chihuahua")),
        Category(name="bench", synonyms=("park bench",)),
        Category(name="candle"),
        Category(name="bridge"),
        *(Category(name=f"thing {letter}") for letter in "abcdefgh"),
    )
)


def writer(categories: CategoryList = CATEGORIES, **settings: object) -> QuestionWriter:
    return QuestionWriter(categories, QuestionSettings.model_validate(settings))


def all_questions(**settings: object) -> list[Question]:
    some = writer(**settings)
    return [
        *some.attribute_questions(),
        *some.specific_questions(ATTRIBUTES),
        *some.relationship_questions(),
    ]


def test_the_same_settings_ask_the_same_and_another_seed_asks_otherwise() -> None:
    first = all_questions(relationships=50)
    assert all_questions(relationships=50) == first
    other = all_questions(relationships=50, seed=1)
    assert len(other) == len(first)
    assert not {q.seed for q in first} & {q.seed for q in other}
    assert [q.pattern for q in other] != [q.pattern for q in first]


def test_as_many_questions_as_asked_for() -> None:
    some = writer(per_category=7, relationships=40, attributes=5)
    specific = list(some.specific_questions(ATTRIBUTES))
    assert Counter(q.categories for q in specific) == {(i,): 7 for i in range(len(CATEGORIES))}
    assert len(list(some.relationship_questions())) == 40
    assert all("5 attributes" in q.instruction for q in some.attribute_questions())
    assert list(writer(attributes=0).attribute_questions()) == []


def test_more_relationships_only_add_questions() -> None:
    few = list(writer(relationships=10).relationship_questions())
    assert list(writer(relationships=30).relationship_questions())[:10] == few


def test_sets_have_their_sizes_in_the_given_shares() -> None:
    shares = (0.1, 0.4, 0.2, 0.2, 0.1)
    questions = list(writer(relationships=3000, set_shares=shares).relationship_questions())
    assert all(len(set(q.categories)) == len(q.categories) for q in questions)
    sizes = Counter(len(q.categories) for q in questions)
    assert [sizes[n] / 3000 for n in range(1, 6)] == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_each_category_is_drawn_about_equally_often(count: int) -> None:
    categories = CategoryList(categories=CATEGORIES.categories[:count])
    shares = (0.2, 0.2, 0.2, 0.2, 0.2)
    questions = writer(categories, relationships=600, set_shares=shares).relationship_questions()
    drawn = Counter(c for q in questions for c in q.categories)
    assert len(drawn) == count
    assert max(drawn.values()) <= 1.05 * min(drawn.values())


def test_questions_name_what_they_ask_about() -> None:
    for q in writer(per_category=8, relationships=60).specific_questions(ATTRIBUTES):
        category = CATEGORIES.categories[q.categories[0]]
        asked = q.pattern.splitlines()[-1].removesuffix(":").split(", ")
        assert asked[0] in (*category.names, *category.kinds)
        assert asked[1] in ATTRIBUTES
        assert asked[0] in q.instruction
    for q in writer(per_category=8, relationships=60).relationship_questions():
        asked = q.pattern.splitlines()[-1].removesuffix(":").split(", ")
        for word, c in zip(asked, q.categories, strict=True):
            category = CATEGORIES.categories[c]
            assert word in (*category.names, *category.kinds)
        assert ", ".join(asked) in q.instruction


def test_kinds_and_synonyms_are_asked_about_but_mostly_the_name() -> None:
    words = Counter(
        q.pattern.splitlines()[-1].split(", ")[0]
        for q in writer(per_category=24).specific_questions(ATTRIBUTES)
        if q.categories == (0,)
    )
    assert words == {"dog": 16, "sheepdog": 4, "chihuahua": 4}


def test_examples_never_name_a_category_and_vary() -> None:
    matcher = NounMatcher(CATEGORIES)
    shown: dict[str, set[tuple[str, ...]]] = {}
    for q in all_questions(relationships=60):
        *before, _ = q.pattern.splitlines()
        assert matcher.find("\n".join(before)) == ()
        assert len(q.shown) == len(before) - 1
        assert all(line.endswith(text) for text, line in zip(q.shown, before[1:], strict=True))
        shown.setdefault(q.kind, set()).add(q.shown)
    assert len(shown["specific"]) > 1
    assert len(shown["relationship"]) > 1


def test_every_question_samples_with_a_seed_of_its_own() -> None:
    questions = all_questions(relationships=600)
    assert len({q.seed for q in questions}) == len(questions)


@pytest.mark.parametrize(
    "wrong",
    [{"set_shares": (0.5, 0.5, 0.5, 0.0, 0.0)}, {"per_category": -1}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        QuestionSettings.model_validate(wrong)


def test_attributes_are_single_words_the_most_frequent_first() -> None:
    answers = [
        "colour, shape, light.",
        "Shape, weather, many words here, 3D",
        "shape, light, shape, x, averyveryverylongword",
    ]
    assert parse_attributes(answers, limit=6) == [
        "colour",
        "material",
        "shape",
        "size",
        "light",
        "weather",
    ]
    assert parse_attributes(answers, limit=5)[-1] == "light"


def test_attributes_are_never_none() -> None:
    assert set(parse_attributes([], limit=0)) == {"colour", "size", "material"}
    assert set(parse_attributes(["???"], limit=12)) == {"colour", "size", "material"}
