"""How well the labels of sentences are found, on sentences that were labelled by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prompt_tuning.categories import BUILT_IN, CategoryList, built_in
from prompt_tuning.knowledge.noun_matching import NounMatcher

SENTENCES = yaml.safe_load((Path(__file__).parent / "data/named_labels.yaml").read_text("utf-8"))


def category_list(name: str) -> CategoryList:
    if name in BUILT_IN:
        return built_in(name)
    return CategoryList.model_validate_json(json.dumps({"categories": SENTENCES["lists"][name]}))


@pytest.mark.parametrize(
    ("half", "precision", "recall"), [("development", 0.98, 0.98), ("held_out", 0.97, 0.97)]
)
def test_precision_and_recall(half: str, precision: float, recall: float) -> None:
    right = wrong = missed = 0
    for name, sentences in SENTENCES[half].items():
        categories = category_list(name)
        matcher = NounMatcher(categories.categories)
        for sentence, labels in sentences.items():
            expected = {categories.index(label) for label in labels.split(", ") if label}
            found = set(matcher.find(sentence))
            right += len(found & expected)
            wrong += len(found - expected)
            missed += len(expected - found)
    assert right / (right + wrong) >= precision
    assert right / (right + missed) >= recall


def test_there_are_351_sentences() -> None:
    halves = ("development", "held_out")
    assert sum(len(some) for half in halves for some in SENTENCES[half].values()) == 351
