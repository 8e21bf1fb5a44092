"""Groups: given in a file, or clustered."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import (
    Hierarchy,
    HierarchySettings,
    cluster_groups,
    group_by_answers,
    parse_groups,
)
from prompt_tuning.knowledge.category_facts import CategoryFacts


def named(*names: str) -> CategoryList:
    return CategoryList(categories=tuple(Category(name=name) for name in names))


ANIMALS_AND_CARS = named("dog", "car", "cat", "cow", "bus")
TREE = {"animals": {"pets": ["cat", "dog"], "farm": ["cow"]}, "things": {"road": ["bus", "car"]}}


def random_features(classes: int) -> np.ndarray:
    features = np.random.default_rng(classes).normal(size=(classes, 16))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def many(classes: int) -> CategoryList:
    return named(*(f"thing {i}" for i in range(classes)))


def test_groups_of_a_tree_follow_the_order_of_the_categories() -> None:
    hierarchy = parse_groups(TREE, ANIMALS_AND_CARS, "groups.yaml")
    assert hierarchy == Hierarchy(
        fine_names=("pets", "farm", "road"),
        coarse_names=("animals", "things"),
        fine_of=(0, 2, 0, 1, 2),
        coarse_of=(0, 1, 0, 0, 1),
    )
    assert hierarchy.tree(ANIMALS_AND_CARS) == {
        "animals": {"pets": ["dog", "cat"], "farm": ["cow"]},
        "things": {"road": ["car", "bus"]},
    }


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (["dog"], "must map coarse groups to fine groups"),
        ({"animals": ["dog", "cat"]}, "must map coarse groups to fine groups"),
        ({**TREE, "empty": {}}, "group 'empty' has no fine groups"),
        ({**TREE, "empty": {"none": []}}, "group 'none' of 'empty' must list its categories"),
        ({**TREE, "word": {"one": "dog"}}, "group 'one' of 'word' must list its categories"),
        ({**TREE, "more": {"birds": ["owl"]}}, "'owl' in group 'birds' is not a category"),
        ({**TREE, "more": {"odd": [3]}}, "3 in group 'odd' is not a category"),
        ({**TREE, "more": {"again": ["dog"]}}, "'dog' is in two groups"),
        ({"animals": TREE["animals"]}, "categories without a group: car, bus"),
        ({}, "categories without a group: dog, car, cat, cow, bus"),
    ],
)
def test_trees_that_do_not_fit_are_refused_by_name(tree: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^groups.yaml: {complaint}"):
        parse_groups(tree, ANIMALS_AND_CARS, "groups.yaml")


def test_fewer_fine_than_coarse_groups_are_refused() -> None:
    with pytest.raises(ValidationError, match="fine 3 is below coarse 4"):
        HierarchySettings(coarse=4, fine=3)


@pytest.mark.parametrize(
    ("classes", "coarse", "fine"),
    [(44, 5, 14), (80, 9, 20), (10, 3, 4), (7, 3, 3), (9, 1, 1), (12, 4, 12), (5, 5, 5)],
)
def test_clusters_are_nested_balanced_and_as_many_as_asked(
    classes: int, coarse: int, fine: int
) -> None:
    hierarchy = cluster_groups(random_features(classes), many(classes), coarse, fine)
    assert len(hierarchy.coarse_names) == coarse
    assert len(hierarchy.fine_names) == fine
    assert len(set(hierarchy.fine_names)) == fine
    assert set(hierarchy.fine_of) == set(range(fine))
    assert set(hierarchy.coarse_of) == set(range(coarse))
    within: dict[int, Counter[int]] = {c: Counter() for c in range(coarse)}
    for f, c in zip(hierarchy.fine_of, hierarchy.coarse_of, strict=True):
        within[c][f] += 1
    assert sum(len(fines) for fines in within.values()) == fine
    sizes = [sum(fines.values()) for fines in within.values()]
    for balanced in (sizes, *(list(fines.values()) for fines in within.values())):
        assert max(balanced) - min(balanced) <= 1
    # A clustered tree reads back as the same hierarchy, so it can be kept in a file.
    leaves = [
        name
        for fines in hierarchy.tree(many(classes)).values()
        for group in fines.values()
        for name in group
    ]
    assert sorted(leaves) == sorted(many(classes).names)


def test_clustering_repeats() -> None:
    features = random_features(30)
    first = cluster_groups(features, many(30), 4, 9)
    assert cluster_groups(features.copy(), many(30), 4, 9) == first


def test_obvious_clusters_are_found() -> None:
    draw = np.random.default_rng(0)
    # Two far apart coarse directions, each with two fine ones, in no order.
    fine_centres = np.eye(8)[:4] + np.eye(8)[[4, 4, 5, 5]] * 2
    truth = draw.permutation(np.arange(16) % 4)
    features = fine_centres[truth] + draw.normal(0, 0.05, (16, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    hierarchy = cluster_groups(features, many(16), 2, 4)
    assert len(set(zip(hierarchy.fine_of, truth, strict=True))) == 4
    assert len(set(zip(hierarchy.coarse_of, truth // 2, strict=True))) == 2


@pytest.mark.parametrize(("coarse", "fine"), [(2, 40), (40, 40)])
def test_more_groups_than_categories_are_cut(coarse: int, fine: int) -> None:
    hierarchy = cluster_groups(random_features(6), many(6), coarse, fine)
    assert sorted(hierarchy.fine_of) == list(range(6))
    assert len(hierarchy.fine_names) == 6
    assert len(hierarchy.coarse_names) == min(coarse, 6)


def test_equal_features_still_make_balanced_groups() -> None:
    hierarchy = cluster_groups(np.tile(np.eye(4)[:1], (6, 1)), many(6), 2, 3)
    assert sorted(Counter(hierarchy.coarse_of).values()) == [3, 3]
    assert len(set(hierarchy.fine_of)) == 3


def test_groups_are_named_after_their_most_central_member() -> None:
    angles = np.radians([0, 40, 25, 180, 240, 205])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    names = named("east", "north east", "between", "west", "south west", "there")
    hierarchy = cluster_groups(features, names, 2, 2)
    first_names = sorted(name.split(", ")[0] for name in hierarchy.coarse_names)
    assert first_names == ["between", "there"]


def test_groups_by_answers_are_nested_named_and_hold_every_category_once() -> None:
    categories = named("dog", "car", "cat", "apple", "bus", "pear")
    classes = {
        "dog": {"pet": 2, "animal": 2},
        "cat": {"pet": 1, "animal": 1},
        "car": {"vehicle": 2},
        "bus": {"vehicle": 1, "animal": 1},
        "apple": {"fruit": 1, "food": 2},
        "pear": {"fruit": 2, "food": 1},
    }
    together = {"dog": {"cat": 3}, "cat": {"dog": 3}, "car": {"bus": 1}, "bus": {"car": 1}}
    facts = CategoryFacts(classes=classes, together=together)
    tree = group_by_answers(facts, categories, 3, 3).tree(categories)
    assert sorted(names for fines in tree.values() for names in fines.values()) == [
        ["apple", "pear"],
        ["car", "bus"],
        ["dog", "cat"],
    ]
    assert sorted(name.partition(":")[0] for name in tree) == ["animal", "food", "vehicle"]


@pytest.mark.parametrize(("coarse", "fine"), [(1, 1), (2, 4), (3, 5), (9, 20)])
def test_groups_by_answers_cover_categories_of_which_nothing_is_known(
    coarse: int, fine: int
) -> None:
    categories = many(7)
    known = CategoryFacts(classes={"thing 0": {"animal": 1}, "thing 1": {"animal": 1}})
    for facts in (CategoryFacts(), known):
        tree = group_by_answers(facts, categories, coarse, fine).tree(categories)
        listed = [name for fines in tree.values() for names in fines.values() for name in names]
        assert sorted(listed) == sorted(categories.names)
