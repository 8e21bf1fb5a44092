"""Prompts for labels that were not tuned, from the tokens and residuals of the tuned categories.

A new label's prompt is `SOS | tokens | name . EOS`. The tokens are the mean over the categories of
the group nearest to the label in text: shared and group tokens stay, category tokens are averaged.
Residual vectors are averaged over all categories: those of a group pull to its own categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE, VLM
from prompt_tuning.categories import CategoryList, category_named
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.label_names import name_key
from prompt_tuning.tuning.prompts import anchor_features, interpolate_with_anchor

BRANCHES = ("global", "local")


@dataclass(frozen=True)
class TunedTokens:
    """The tokens and residuals behind the class features, and the anchor's weight in these.

    `tensors`: from `TuningRun.best_tokens`; a branch of free vectors has none. `anchor_weights`: by
    branch (see `BranchSettings`).
    """

    tensors: dict[str, Tensor]
    anchor_weights: dict[str, float]

    def context(self, branch: str) -> Tensor | None:
        """Context tokens of each category's prompt, `(classes, tokens, context_width)`."""
        if f"{branch}.table" not in self.tensors:
            return None
        return self.tensors[f"{branch}.table"][self.tensors[f"{branch}.rows"]]

    def residuals(self, branch: str) -> Tensor | None:
        """The sum of each category's residual vectors, `(classes, dim)`."""
        return self.tensors.get(f"{branch}.residuals")

    def adding(self, contexts: dict[str, Tensor], residuals: dict[str, Tensor]) -> TunedTokens:
        """With the contexts `(labels, tokens, context_width)` and the residuals `(labels, dim)` of
        new labels after the others'."""
        tensors = dict(self.tensors)
        for branch, added in residuals.items():
            tensors[f"{branch}.residuals"] = torch.cat([tensors[f"{branch}.residuals"], added])
        for branch, context in contexts.items():
            table, rows = tensors[f"{branch}.table"], tensors[f"{branch}.rows"]
            new = len(table) + torch.arange(context.shape[0] * context.shape[1])
            tensors[f"{branch}.table"] = torch.cat([table, context.flatten(0, 1)])
            tensors[f"{branch}.rows"] = torch.cat([rows, new.unflatten(0, context.shape[:2])])
        return replace(self, tensors=tensors)


@dataclass(frozen=True)
class NewLabels:
    """Class features of new labels, without tuning.

    `groups`: the index of each label's nearest fine group. `contexts`: for each branch with tokens,
    `(labels, tokens, context_width)`. `residuals`: for each branch with residuals, `(labels, dim)`.
    """

    features: ClassFeatures
    groups: list[int]
    contexts: dict[str, Tensor]
    residuals: dict[str, Tensor]


@torch.no_grad()
def prompt_new_labels(
    vlm: VLM,
    labels: Sequence[str],
    categories: CategoryList,
    groups: Sequence[Sequence[int]],
    tokens: TunedTokens,
) -> NewLabels:
    """Prompts for labels that were not tuned; a branch of free vectors uses their anchors.

    `groups`: indices of the categories of each fine group.
    """
    tuned = F.normalize(anchor_features(vlm, categories), dim=-1)
    anchor = vlm.encode_text([ANCHOR_TEMPLATE.format(label) for label in labels])
    centres = torch.stack([F.normalize(tuned[list(group)].mean(0), dim=-1) for group in groups])
    nearest = (F.normalize(anchor, dim=-1) @ centres.T).argmax(1).tolist()
    contexts, residuals, features = {}, {}, []
    for branch in BRANCHES:
        prompted = anchor
        if (context := tokens.context(branch)) is not None:
            contexts[branch] = torch.stack([context[list(groups[g])].mean(0) for g in nearest])
            prompted = vlm.encode_prompts(contexts[branch].to(vlm.device), list(labels))
        if (of_tuned := tokens.residuals(branch)) is not None:
            residuals[branch] = of_tuned.mean(0).repeat(len(labels), 1)
            prompted = prompted + residuals[branch].to(vlm.device)
        features.append(
            interpolate_with_anchor(
                F.normalize(prompted + anchor, dim=-1), anchor, tokens.anchor_weights[branch]
            ).cpu()
        )
    return NewLabels(ClassFeatures(*features), nearest, contexts, residuals)


def meant_labels(labels: Sequence[str], categories: CategoryList) -> tuple[str, ...]:
    """The names of the categories that labels mean, by any spelling or synonym; new labels stay.

    Raises:
        ValueError: in one line, for one of a category's kinds, and as `check_labels` does.
    """
    kinds = {name_key(kind): owner.name for owner in categories.categories for kind in owner.kinds}
    meant = []
    for label in labels:
        place = categories.find(label)
        if place is None and (owner := kinds.get(name_key(label))):
            raise ValueError(f"label {label!r} is a kind of {owner!r}: give {owner!r}")
        meant.append(label if place is None else categories.names[place])
    check_labels(meant)
    return tuple(meant)


def check_labels(labels: Sequence[str]) -> None:
    """Raises ValueError in one line for no labels, a label twice, or one that is not a name."""
    if not labels:
        raise ValueError("no label is given")
    seen: dict[str, str] = {}
    for label in labels:
        key = name_key(category_named(label).name)
        if key in seen:
            raise ValueError(f"label {seen[key]!r} is given twice, by name or synonym")
        seen[key] = label
