"""Checks, before a language model is asked, that the filter keeps sentences about each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prompt_tuning.captions import Caption, CaptionSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.caption_filter import CaptionFilter
from prompt_tuning.knowledge.dialogue import Answer, Question

# Typical sentences: the label as the subject, or in contexts that decide whether it is a noun.
_SENTENCES = (
    "A {} waits near the old gate.",
    "The {} moves slowly past an old house.",
    "Two people look at the {} in the morning.",
    "A man with a {} walks along the river.",
    "Behind the old {}, children play in the mud.",
    "There is a large {} and a chair.",
)


@dataclass(frozen=True)
class DroppedLabel:
    """A label whose sentences are mostly dropped. `reason`: the most frequent one.

    `never`: whether all of its sentences are dropped, also those with its synonyms and kinds.
    """

    name: str
    reason: str
    never: bool


def dropped_labels(categories: CategoryList) -> list[DroppedLabel]:
    """Labels that few sentences can get, found by running the caption filter."""
    # Of any length, because the length limits of a run do not depend on the label.
    judge = CaptionFilter(categories, CaptionSettings(min_words=1, max_words=1000)).judge

    def fates(name: str, word: str) -> Iterator[Caption | str]:
        question = Question("specific", (name,), (word,), "", "", (), seed=0)
        for sentence in _SENTENCES:
            yield judge(question, Answer(sentence.format(word), True, 0))

    dropped = []
    for category in categories.categories:
        name, *others = (*category.names, *category.kinds)
        reasons = [fate for fate in fates(name, name) if isinstance(fate, str)]
        if len(reasons) > len(_SENTENCES) / 2:
            helped = any(isinstance(fate, Caption) for word in others for fate in fates(name, word))
            never = not helped and len(reasons) == len(_SENTENCES)
            dropped.append(DroppedLabel(name, Counter(reasons).most_common(1)[0][0], never))
    return dropped
