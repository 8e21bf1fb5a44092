"""Reading the lists that the language model gives."""

from __future__ import annotations

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.category_facts import CategoryFacts, confirm_kinds, read_category_facts
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.templates import Kind

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog", kinds=("puppy",)),
        Category(name="car", synonyms=("automobile",)),
        Category(name="tree"),
    )
)


def pair(kind: Kind, name: str | None, text: str, finished: bool = True) -> tuple[Question, Answer]:
    asked = (name,) if name else ()
    return Question(kind, asked, asked, "?", "?", (), seed=0), Answer(text, finished, 5)


def read(*pairs: tuple[Question, Answer], attributes: int = 6) -> CategoryFacts:
    return read_category_facts(CATEGORIES, pairs, attributes)


def test_attributes_are_single_words_the_most_named_first() -> None:
    answers = [
        pair("attributes", None, "colour, shape, light."),
        pair("attributes", None, "Shape, weather, many words here, 3D"),
        pair("attributes", None, "shape, light, shape, x, averyveryverylongword"),
    ]
    common = ("colour", "size", "material", "shape", "light", "weather")
    assert read(*answers).attributes == common
    assert read(*answers, attributes=4).attributes == common[:4]


def test_attributes_are_never_none() -> None:
    assert read(attributes=0).attributes == ("colour", "size", "material")
    assert read(pair("attributes", None, "???")).attributes_of("dog") == (
        "colour",
        "size",
        "material",
    )


def test_a_category_is_asked_about_the_attributes_that_the_model_names_for_it() -> None:
    facts = read(
        pair("attributes", None, "shape, pose, place, light"),
        pair("aspects", "dog", "pose, size, colour, breed"),
        pair("aspects", "dog", "place, pose"),
        pair("aspects", "car", "nonsense"),
        attributes=7,
    )
    assert facts.attributes_of("dog") == ("colour", "size", "place", "pose")
    # Few are filled up from those of all, and a category without an answer has all.
    assert facts.attributes_of("car") == ("colour", "size", "material", "light")
    assert facts.attributes_of("tree") == facts.attributes


def test_a_kind_counts_when_two_answers_agree_on_it() -> None:
    facts = read(
        pair("kinds", "dog", "beagle, poodle, puppy, a hot rod car, Beagle"),
        pair("kinds", "dog", "The poodle, beagle, wolf, hot rod car"),
        pair("kinds", "dog", "wolf, poodl", finished=False),
    )
    assert facts.kinds["dog"] == ("beagle", "poodle", "wolf")
    assert facts.kinds["tree"] == ()


def test_lists_are_read_however_they_are_set() -> None:
    facts = read(
        pair("kinds", "dog", "1. Golden Retrievers\n2. Huskies\n3. Boxes"),
        pair("kinds", "dog", "- golden retriever; husky; dog house; dogs"),
        pair("kinds", "dog", "Husky, box, dog house, dogs, dog house"),
    )
    assert facts.kinds["dog"] == ("husky", "box", "golden retriever")


def test_no_kind_names_another_category_or_a_part_of_its_own() -> None:
    answers = ["sports car, car door, tree car, dog, roadster"] * 2
    facts = read(*(pair("kinds", "car", answer) for answer in answers))
    assert facts.kinds["car"] == ("roadster", "sports car")


def test_what_is_named_together_counts_for_both() -> None:
    facts = read(
        pair("together", "dog", "automobiles, leash, old tree, dogs"),
        pair("together", "dog", "tree, ball"),
        pair("together", "tree", "puppies, grass"),
    )
    assert facts.together == {
        "dog": {"car": 1, "tree": 3},
        "car": {"dog": 1},
        "tree": {"dog": 3},
    }
    assert facts.companions(["car", "tree"]) == {"dog": 4}
    assert facts.company["dog"]["leash"] == 1


def test_a_list_that_was_cut_loses_its_last_item() -> None:
    facts = read(pair("classes", "dog", "pet, animal, mamm", finished=False))
    assert facts.classes["dog"] == {"pet": 1, "animal": 1}


def test_the_lists_read_back_as_written() -> None:
    facts = read(pair("together", "dog", "tree"), pair("kinds", "dog", "pug"))
    assert CategoryFacts.model_validate_json(facts.model_dump_json()) == facts


def test_a_kind_is_kept_when_the_model_says_that_it_is_one() -> None:
    facts = CategoryFacts(kinds={"dog": ("beagle", "cat", "wolf"), "tree": ("oak",)})

    def check(name: str, kind: str, text: str) -> tuple[Question, Answer]:
        question = Question("classes", (name,), (kind,), "?", "?", (), seed=0)
        return question, Answer(text, True, 5)

    confirmed = confirm_kinds(
        facts,
        CATEGORIES,
        [
            check("dog", "beagle", "small dogs, pet"),
            check("dog", "beagle", "dog, mammal, animal"),
            check("dog", "cat", "dog, animal"),
            check("dog", "cat", "pet, animal"),
            check("dog", "wolf", "large dogs"),
            check("tree", "oak", "dog"),
        ],
    )
    assert confirmed.kinds == {"dog": ("beagle", "wolf"), "tree": ()}


def test_what_the_examples_show_is_no_kind() -> None:
    question = Question("kinds", ("tree",), ("tree",), "?", "?", ("top hat, fedora",), seed=0)
    facts = read(*[(question, Answer("oak, fedora, top hat, tree", True, 5))] * 2)
    assert facts.kinds["tree"] == ("oak",)
