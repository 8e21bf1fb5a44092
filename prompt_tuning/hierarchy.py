"""The hierarchy: fine groups of categories, inside coarse groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.category_facts import CategoryFacts, Votes
from prompt_tuning.settings import Settings

_ROUNDS = 20


class HierarchySettings(Settings):
    """Where the groups of categories come from.

    `groups`: `builtin` (lists for coco, nus, starter and voc), `auto` (clusters of text features),
    `llm` (clusters of the language model's answers about what categories are and what they are seen
    with), or a YAML file: coarse group -> fine group -> names. `coarse`, `fine`: the numbers of
    clusters.
    """

    groups: str = "auto"
    coarse: Annotated[int, Field(ge=1)] = 5
    fine: Annotated[int, Field(ge=1)] = 14

    @model_validator(mode="after")
    def _nested(self) -> HierarchySettings:
        if self.fine < self.coarse:
            raise ValueError(f"fine {self.fine} is below coarse {self.coarse}: groups are nested")
        return self


@dataclass(frozen=True)
class Hierarchy:
    """Nested groups of categories.

    `fine_of`, `coarse_of`: the group of each category `(classes,)`, as indices into the names.
    """

    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    fine_of: tuple[int, ...]
    coarse_of: tuple[int, ...]

    def tree(self, categories: CategoryList) -> dict[str, dict[str, list[str]]]:
        """Coarse group -> fine group -> names of its categories."""
        tree: dict[str, dict[str, list[str]]] = {name: {} for name in self.coarse_names}
        for name, fine, coarse in zip(categories.names, self.fine_of, self.coarse_of, strict=True):
            tree[self.coarse_names[coarse]].setdefault(self.fine_names[fine], []).append(name)
        return tree


def parse_groups(tree: Any, categories: CategoryList, source: str) -> Hierarchy:
    """The hierarchy in a nested mapping: coarse group -> fine group -> names or synonyms.

    Raises:
        ValueError: with `source` and the group, for a wrong shape, an empty group, an unknown name,
            or a category in two groups or in none.
    """
    if not isinstance(tree, dict) or not all(isinstance(fines, dict) for fines in tree.values()):
        raise ValueError(
            f"{source}: must map coarse groups to fine groups, and these to lists of categories"
        )
    fine_names: list[str] = []
    groups: dict[int, tuple[int, int]] = {}
    for c, (coarse, fines) in enumerate(tree.items()):
        if not fines:
            raise ValueError(f"{source}: group {coarse!r} has no fine groups")
        for fine, members in fines.items():
            if not isinstance(members, list) or not members:
                raise ValueError(f"{source}: group {fine!r} of {coarse!r} must list its categories")
            for name in members:
                found = categories.find(name) if isinstance(name, str) else None
                if found is None:
                    raise ValueError(f"{source}: {name!r} in group {fine!r} is not a category")
                if found in groups:
                    raise ValueError(f"{source}: {name!r} is in two groups")
                groups[found] = (len(fine_names), c)
            fine_names.append(str(fine))
    missing = [name for c, name in enumerate(categories.names) if c not in groups]
    if missing:
        raise ValueError(f"{source}: categories without a group: {', '.join(missing[:10])}")
    return Hierarchy(
        fine_names=tuple(fine_names),
        coarse_names=tuple(str(name) for name in tree),
        fine_of=tuple(groups[c][0] for c in range(len(categories))),
        coarse_of=tuple(groups[c][1] for c in range(len(categories))),
    )


def cluster_groups(
    features: np.ndarray, categories: CategoryList, coarse: int, fine: int
) -> Hierarchy:
    """Balanced, nested groups by clustering text features `(classes, dim)` of unit length.

    Clusters all categories into coarse groups, then each coarse group into fine groups. `fine` must
    be at least `coarse`; both are limited to the number of categories. A group is named after its
    two most central members.
    """
    coarse_of = _balanced_clusters(features, min(coarse, len(features)))
    groups = range(int(coarse_of.max()) + 1)
    fine_of = np.zeros(len(features), dtype=int)
    fine_names: list[str] = []
    for c in groups:
        members = np.flatnonzero(coarse_of == c)
        # Fine groups are dealt to coarse groups in turn, as categories are, so none stays empty.
        share = len(range(c, min(fine, len(features)), len(groups)))
        inner = _balanced_clusters(features[members], share)
        fine_of[members] = inner + len(fine_names)
        for f in range(share):
            fine_names.append(_central_names(features, members[inner == f], categories))
    return Hierarchy(
        fine_names=tuple(fine_names),
        coarse_names=tuple(
            _central_names(features, np.flatnonzero(coarse_of == c), categories) for c in groups
        ),
        fine_of=tuple(int(f) for f in fine_of),
        coarse_of=tuple(int(c) for c in coarse_of),
    )


def group_by_answers(
    facts: CategoryFacts, categories: CategoryList, coarse: int, fine: int
) -> Hierarchy:
    """Balanced, nested groups of categories with similar category facts.

    Categories are close if the language model gave the same words for what they are and what they
    are seen with. Rare words count more, and each category counts as seen with itself. A group is
    named after the most frequent word for what its members are, if there is one.
    """
    company = {
        name: {**facts.company.get(name, {}), **facts.together.get(name, {}), name: 1}
        for name in categories.names
    }
    features = np.concatenate(
        [_word_features(facts.classes, categories), _word_features(company, categories)], axis=1
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    groups = cluster_groups(features, categories, coarse, fine)
    return replace(
        groups,
        fine_names=_class_names(groups.fine_of, groups.fine_names, facts, categories),
        coarse_names=_class_names(groups.coarse_of, groups.coarse_names, facts, categories),
    )


def _word_features(votes: dict[str, Votes], categories: CategoryList) -> np.ndarray:
    """TF-IDF vectors `(classes, words)` of unit length; the votes are the term frequencies."""
    words = sorted({word for words in votes.values() for word in words})
    counts = np.array(
        [[votes.get(name, {}).get(word, 0) for word in words] for name in categories.names],
        dtype=float,
    ).reshape(len(categories), len(words))
    weighted = counts * np.log(len(categories) / np.maximum((counts > 0).sum(0), 1) + 1)
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def _class_names(
    group_of: tuple[int, ...],
    names: tuple[str, ...],
    facts: CategoryFacts,
    categories: CategoryList,
) -> tuple[str, ...]:
    """The most frequent class word of each group, with its central members to make it unique."""
    titles = []
    for group, central in enumerate(names):
        votes: Counter[str] = Counter()
        for name, own_group in zip(categories.names, group_of, strict=True):
            if own_group == group:
                votes.update(facts.classes.get(name, {}))
        word = max(sorted(votes), key=lambda word: votes[word]) if votes else ""
        titles.append(f"{word}: {central}" if word else central)
    return tuple(titles)


def _balanced_clusters(features: np.ndarray, groups: int) -> np.ndarray:
    """k-means with groups of equal size, to within one; returns group indices `(items,)`.

    It starts from farthest-first items, so it needs no random numbers.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    start = [int(np.argmax(features @ features.mean(0)))]
    while len(start) < groups:
        start.append(int(np.argmin((features @ features[start].T).max(1))))
    centres = features[start]
    seats = np.arange(len(features)) % groups  # the group of each seat; sizes differ by at most one
    assigned = np.full(len(features), -1)
    for _ in range(_ROUNDS):
        rows, columns = linear_sum_assignment(-(features @ centres.T)[:, seats])
        changed = seats[columns]
        if (changed == assigned[rows]).all():
            break
        assigned[rows] = changed
        centres = np.stack([features[assigned == g].mean(0) for g in range(groups)])
    return assigned


def _central_names(features: np.ndarray, members: np.ndarray, categories: CategoryList) -> str:
    order = np.argsort(-features[members] @ features[members].mean(0), kind="stable")
    return ", ".join(categories.names[i] for i in members[order[:2]])
