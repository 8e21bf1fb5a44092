"""Label lists: which names can be labels, which two names are one, and how a name is found."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prompt_tuning.api import tune
from prompt_tuning.categories import BUILT_IN, Category, CategoryList, built_in
from prompt_tuning.hierarchy import parse_groups


def named(*names: str) -> CategoryList:
    return CategoryList(categories=tuple(Category(name=name) for name in names))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("dog", "Dog"),
        ("dog", "dogs"),
        ("hot dog", "hot dogs"),
        ("t-shirt", "t shirt"),
        ("traffic_light", "traffic light"),
        ("café", "cafe\N{COMBINING ACUTE ACCENT}"),
        ("snowman", "snowmen"),
        ("STRASSE", "straße"),
    ],
)
def test_two_spellings_of_one_name_are_refused_with_both(first: str, second: str) -> None:
    with pytest.raises(ValidationError) as caught:
        named(first, "violin", second)
    assert f"category {second!r} is listed twice, also as {first!a}" in str(caught.value)
    for others in ({"synonyms": (second,)}, {"kinds": (second,)}):
        with pytest.raises(ValidationError, match=r"stands for two categories: .* and violin"):
            CategoryList(categories=(Category(name=first), Category(name="violin", **others)))
    # Inside one category nothing is in doubt.
    CategoryList(categories=(Category(name=first, synonyms=(second,)), Category(name="violin")))


def test_names_that_only_look_alike_are_two() -> None:
    named("bus", "glass", "glasses", "hot dog", "dog", "class", "tennis", "3 wheeler", "C#", "C")


@pytest.mark.parametrize(
    "name",
    [
        *("dog;cat", "dog, puppy", "dog\tcat", "dog\r", "dog\ncat", "dog\x07", "\ufeffdog"),
        *("do\u200bg", "hot\u00a0dog", "\u202edog", " dog", "hot  dog", "--", ""),
    ],
)
def test_what_cannot_be_told_apart_or_written_in_a_file_is_no_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Category(name=name)
    with pytest.raises(ValidationError):
        Category(name="dog", synonyms=(name,))


def test_a_category_is_found_by_name_or_synonym_in_any_spelling() -> None:
    sofa = Category(name="sofa", synonyms=("couch",), kinds=("loveseat",))
    listed = CategoryList(categories=(Category(name="T-shirt"), sofa))
    for spelling, place in (
        *(("t shirt", 0), ("T_SHIRTS", 0), (" t-shirt ", 0)),
        *(("Sofa", 1), ("couches", 1), ("loveseat", None), ("shirt", None)),
    ):
        assert listed.find(spelling) == place, spelling
    assert CategoryList.model_validate(listed.model_dump()) == listed


def test_every_name_of_the_built_in_lists_is_found() -> None:
    for listed in map(built_in, BUILT_IN):
        for c, category in enumerate(listed.categories):
            assert {listed.find(name) for name in category.names} == {c}


def test_groups_may_spell_labels_otherwise() -> None:
    listed = CategoryList(
        categories=(Category(name="T-shirt"), Category(name="sofa", synonyms=("couch",)))
    )
    groups = parse_groups({"a": {"b": ["Couches"], "c": ["t shirt"]}}, listed, "groups.yaml")
    assert groups.fine_of == (1, 0)
    with pytest.raises(ValueError, match="'sofa' is in two groups"):
        parse_groups({"a": {"b": ["couch", "sofa", "T-shirt"]}}, listed, "groups.yaml")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["Dogs"], "these labels have no caption to tune on: cat; .* with allow_missing=True"),
        (["wolf"], "'wolf' is not a category"),
        ([], "has no label"),
    ],
)
def test_tuning_in_a_notebook_names_labels_that_no_sentence_shows(
    labels: list[str], words: str
) -> None:
    sentences = [(f"It sleeps on bed {number}.", labels) for number in range(50)]
    with pytest.raises(ValueError, match=words) as caught:
        tune(None, ["dog", "cat"], sentences)  # type: ignore[arg-type]  # refused before it is used
    assert "\n" not in str(caught.value)
