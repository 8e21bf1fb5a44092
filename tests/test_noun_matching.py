"""Which categories a sentence names."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.noun_matching import NounMatcher
from prompt_tuning.label_names import name_key

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog", kinds=("chihuahua", "sheepdog")),
        Category(name="hot air balloon", synonyms=("hot-air balloon",)),
        Category(name="bus", kinds=("school bus",)),
        Category(name="car", kinds=("sports car",)),
        Category(name="person", kinds=("man", "woman", "child")),
        Category(name="mouse"),
        Category(name="knife"),
        Category(name="apple"),
        Category(name="tree"),
        Category(name="frog", kinds=("tree frog",)),
        Category(name="sheep"),
        Category(name="horse"),
        Category(name="corn"),
        Category(name="drum", kinds=("tom-tom",)),
        Category(name="tomato"),
        Category(name="sandwich"),
    )
)
MATCHER = NounMatcher(CATEGORIES.categories)


def found(text: str) -> list[str]:
    return [CATEGORIES.names[i] for i in MATCHER.find(text)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A dog sleeps.", ["dog"]),
        ("Two DOGS and a Chihuahua sleep", ["dog"]),
        ("The dog's bowl", ["dog"]),
        ("buses, knives and mice", ["bus", "mouse", "knife"]),
        ("People, women and children", ["person"]),
        ("Ripe tomatoes", ["tomato"]),
        ("an apple beside a sports car", ["car", "apple"]),
        ("car,bus;dog", ["dog", "bus", "car"]),
    ],
)
def test_singular_plural_and_other_words_in_the_order_of_the_list(
    text: str, names: list[str]
) -> None:
    assert found(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "a carpet in a concert hall",
        "a scar, an oscar and a carton",
        "a dogma",
        "business and abuse",
        "a pineapple and peppercorns",
        "street performances",
        "",
    ],
)
def test_only_whole_words_count(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a hot dog with mustard", []),
        ("two hot dogs and a dog", ["dog"]),
        ("people at a bus stop", ["person"]),
        ("bus stops and a bus", ["bus"]),
        ("a full car park", []),
        ("a sea horse", []),
        ("a computer mouse", []),
        # The last noun of these is there to be seen; only the first is not.
        ("an apple tree", ["tree"]),
        ("three apple trees", ["tree"]),
        ("a sheep dog", ["dog"]),
    ],
)
def test_compounds_do_not_show_their_first_noun(text: str, names: list[str]) -> None:
    assert found(text) == names


def test_the_last_noun_of_a_compound_may_be_a_category() -> None:
    foods = CategoryList(categories=(Category(name="turkey"), Category(name="sandwich")))
    assert NounMatcher(foods.categories).find("a turkey sandwich") == (1,)
    assert NounMatcher(foods.categories).find("turkey sandwiches") == (1,)


def test_a_compound_that_is_itself_a_category_is_found() -> None:
    categories = CategoryList(
        categories=(
            Category(name="dog"),
            Category(name="hot dog"),
            Category(name="mouse", kinds=("computer mouse",)),
            Category(name="apple tree"),
        )
    )
    matcher = NounMatcher(categories.categories)
    assert matcher.find("two hot dogs") == (1,)
    assert matcher.find("a computer mouse") == (2,)
    assert matcher.find("apple trees") == (3,)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a tree frog", ["frog"]),
        ("a tree frog in a tree", ["tree", "frog"]),
        ("tree frogs", ["frog"]),
        ("a sheepdog", ["dog"]),
        ("school buses", ["bus"]),
    ],
)
def test_the_longest_name_at_a_place_wins(text: str, names: list[str]) -> None:
    assert found(text) == names


@pytest.mark.parametrize(
    "text",
    ["hot-air balloon", "hot air balloons", "Hot-Air  Balloon", "hot air\nballoon"],
)
def test_hyphens_and_spaces_are_alike(text: str) -> None:
    assert found(f"a {text} rises") == ["hot air balloon"]


@pytest.mark.parametrize("text", ["a tom-tom", "two tom toms"])
def test_names_with_hyphens_are_found_without(text: str) -> None:
    assert found(text) == ["drum"]


def test_names_may_hold_characters_that_mean_something_in_patterns() -> None:
    odd = CategoryList(categories=(Category(name="C++ book"), Category(name="cat (pet)")))
    assert NounMatcher(odd.categories).find("a C++ book") == (0,)
    assert NounMatcher(odd.categories).find("a cat, pet of all") == ()


def test_every_letter_that_folds_oddly_finds_its_name() -> None:
    letters = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if letter.isalpha() and unicodedata.normalize("NFC", letter.casefold()) != letter
    ]
    assert {"\u017f", "\u0130", "\u00df"} <= set(letters)
    names = list(dict.fromkeys(name_key(f"a{letter}b") for letter in letters))
    matcher = NounMatcher([Category(name=name) for name in names])
    for letter in letters:
        for spelling in (letter, letter.upper(), letter.lower(), letter.casefold()):
            text = f"a{spelling}b"
            assert matcher.find(f"a {text}.") == (names.index(name_key(text)),), text


@pytest.mark.parametrize("name", ["b\u0131cycle", "\u017faw", "TAKS\u0130", "C#", "traffic_light"])
def test_a_name_is_found_as_it_is_written(name: str) -> None:
    categories = CategoryList(categories=(Category(name=name), Category(name="dog")))
    matcher = NounMatcher(categories.categories)
    assert matcher.find(f"A {name} and a dog.") == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Dogs bark.",
        "The dogs bark at the mailman.",
        "Two dogs bark.",
        "Dog barks at cat.",
        "The dog naps in the sun.",
        "Dogs fish in the river.",
        "Dogs nap beside the stove while it rains.",
        "Wet dogs race across the field.",
        "In the yard, dogs race.",
    ],
)
def test_the_subject_of_a_verb_that_is_a_noun_too_is_found(text: str) -> None:
    assert found(text) == ["dog"]


@pytest.mark.parametrize(
    "text",
    [
        "The dog house is open.",
        "Dog bones lie on the rug.",
        "Horse races draw a large crowd.",
        "A photo of dog tracks in the snow.",
        "A man-made hill and horse tracks in the snow.",
        "The apple pie cools.",
    ],
)
def test_a_noun_before_a_noun_is_no_subject(text: str) -> None:
    assert found(text) == []


def test_slices_of_an_orange_are_orange() -> None:
    matcher = NounMatcher([Category(name="orange")])
    assert matcher.find("Orange slices lie on a plate.") == (0,)
    assert matcher.find("An orange roof covers the hut.") == ()


def test_glasses_of_something_are_glass_whatever_else_is_listed() -> None:
    matcher = NounMatcher([Category(name="glasses"), Category(name="glass")])
    assert matcher.find("Two glasses of wine stand on a table.") == (1,)
    assert matcher.find("He wears glasses and drinks.") == (0,)
