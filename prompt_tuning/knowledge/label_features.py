"""What a text tower shows of a list of labels: senses, and labels that it cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE
from prompt_tuning.categories import BUILT_IN, CategoryList, built_in
from prompt_tuning.knowledge.label_findings import Finding, listed, other_names, senses_of

# Texts to unit features `(texts, dim)`.
EncodeTexts = Callable[[list[str]], Tensor]

_ROWS_AT_ONCE = 512


def find_with_text_tower(categories: CategoryList, encode: EncodeTexts) -> list[Finding]:
    """What the text tower cannot tell apart, and names that it may read in another sense."""
    return [*_several_senses(categories, encode), *_too_close(categories, encode)]


def _several_senses(categories: CategoryList, encode: EncodeTexts) -> Iterator[Finding]:
    """Names of several senses, with the sense that their other names decide for."""
    for category in categories.categories:
        senses = senses_of(category.name)
        if not senses:
            continue
        others = other_names(category)
        features = encode([*senses, *(others or [category.name])])
        meant = features[len(senses) :].mean(0) @ features[: len(senses)].T
        chosen = senses[int(meant.argmax())]
        yield Finding(
            "warning",
            "several senses",
            category.name,
            f"may be {listed(senses)}; "
            + (f"its other names decide for {chosen}" if others else f"it is read as {chosen}"),
            "nothing to do if that is meant"
            if others
            else f"add synonyms or kinds that say which, such as {senses[0]!r}",
        )


def _too_close(categories: CategoryList, encode: EncodeTexts) -> Iterator[Finding]:
    """Pairs whose features are as close as those of a word and its synonym mostly are."""
    features = encode([ANCHOR_TEMPLATE.format(name) for name in categories.names])
    limit = _closeness_of_synonyms(encode)
    for start in range(0, len(categories), _ROWS_AT_ONCE):
        cosines = features[start : start + _ROWS_AT_ONCE] @ features.T  # (rows, classes)
        # Each pair once, with the later label.
        cosines = cosines.tril(start - 1)
        closest, other = cosines.max(1)
        for row in (closest > limit).nonzero().flatten().tolist():
            name, near = categories.names[start + row], categories.names[int(other[row])]
            yield Finding(
                "warning",
                "hard to tell apart",
                name,
                f"is as close to {near!r} for the text tower as a synonym "
                f"(cosine {closest[row]:.2f}, synonyms {limit:.2f})",
                "name what differs, or make them one label",
            )


def _closeness_of_synonyms(encode: EncodeTexts) -> float:
    """The median cosine of a name and its first synonym in the built-in lists."""
    pairs = sorted(
        {
            (category.name, category.synonyms[0])
            for name in BUILT_IN
            for category in built_in(name).categories
            if category.synonyms
        }
    )
    names, synonyms = (
        encode([ANCHOR_TEMPLATE.format(word) for word in words])
        for words in zip(*pairs, strict=True)
    )
    return float(torch.median((names * synonyms).sum(-1)))


def unit_features(encode_text: Callable[[list[str]], Tensor]) -> EncodeTexts:
    """A backbone's `encode_text` with features of unit length, a thousand texts at once."""

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        parts = [encode_text(texts[i : i + 1000]) for i in range(0, len(texts), 1000)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    return encode
