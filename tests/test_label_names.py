"""Which spellings name the same label."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from prompt_tuning.label_names import LabelNames, name_key


@pytest.mark.parametrize(
    "spellings",
    [
        ("dog", "dogs", "Dog", " DOGS "),
        ("hot dog", "hot dogs", "hot-dog", "Hot_Dogs", "hot\u2011dog", "hot  dog"),
        ("caf\u00e9", "cafe\u0301", "Caf\u00e9s", "CAFE\u0301"),
        ("t-shirt", "t shirt", "T-Shirts", "t_shirt"),
        ("driver's licence", "driver\u2019s licences"),
        ("glass of wine", "glasses of wine"),
        ("pair of skis", "pairs of skis"),
        ("wine glass", "wine glasses"),
        ("mother-in-law", "mothers-in-law"),
        ("ski", "skis"),
        ("bus", "buses"),
        ("gas", "gases"),
        ("lens", "lenses"),
        ("person", "people"),
        ("leaf", "leaves"),
        ("snowman", "snowmen"),
        ("policewoman", "policewomen"),
        ("scarf", "scarves"),
        ("calf", "calves"),
        ("cactus", "cacti", "cactuses"),
        ("mango", "mangoes", "mangos"),
        ("volcano", "volcanoes"),
        ("movie", "movies"),
        ("canoe", "canoes"),
        ("selfie", "selfies"),
        ("smartwatch", "smartwatches"),
        ("capybara", "capybaras"),
        ("Stra\u00dfe", "STRASSE"),
        ("taksi", "TAKS\u0130"),
        ("soft\u00adball", "softball"),
    ],
)
def test_spellings_of_one_name(spellings: tuple[str, ...]) -> None:
    assert len({name_key(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("glass", "glasses"),
        ("short", "shorts"),
        ("wood", "woods"),
        ("prince", "princess", "prints"),
        ("Ei", "Eis"),
        ("Gra", "Gras"),
        ("bicycle", "b\u0131cycle"),
        ("C", "C#", "C++"),
        ("sports car", "sport cart"),
    ],
)
def test_names_of_different_things(names: tuple[str, ...]) -> None:
    assert len({name_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    """
    albatross bus canvas chess compass gas glass grass hippopotamus hummus iris lens lotus mattress
    moss octopus princess scissors series sheep species tennis trellis walrus
    """.split(),
)
def test_singulars_that_look_like_plurals_stay(name: str) -> None:
    assert name_key(name) == name


def test_a_label_is_found_by_any_spelling() -> None:
    names = LabelNames(["traffic light", "skis", "C#"])
    assert names.find("Traffic_Lights") == 0
    assert names.find("ski") == 1
    assert names.find("c#") == 2
    assert names.find("C") is None


def test_every_letter_has_a_stable_key() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter)[0] in "LMN":
            key = name_key(f"a{letter}b")
            assert name_key(key) == key, hex(code)
