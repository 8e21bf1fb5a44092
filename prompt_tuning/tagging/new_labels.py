"""Labels that were not tuned: prompts for them out of the tokens of the categories that were.

A new label's prompt is `SOS | tokens | name . EOS` with the mean of the tokens of those categories
whose group is nearest to it in text: the shared tokens and the group's as they are, and the mean of
the group's category tokens.
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
    """The tokens behind the class features, and the hand-crafted prompts' share in these.

    `tensors`: as `TuningRun.best_tokens` gives them; a branch of free vectors has none.
    `anchor_weights`: by branch (see `BranchSettings`).
    """

    tensors: dict[str, Tensor]
    anchor_weights: dict[str, float]

    def context(self, branch: str) -> Tensor | None:
        """Context tokens of each category's prompt, `(classes, tokens, context_width)`."""
        if f"{branch}.table" not in self.tensors:
            return None
        return self.tensors[f"{branch}.table"][self.tensors[f"{branch}.rows"]]

    def adding(self, contexts: dict[str, Tensor]) -> TunedTokens:
        """With the contexts `(labels, tokens, context_width)` of new labels after the others'."""
        tensors = dict(self.tensors)
        for branch, context in contexts.items():
            table, rows = tensors[f"{branch}.table"], tensors[f"{branch}.rows"]
            new = len(table) + torch.arange(context.shape[0] * context.shape[1])
            tensors[f"{branch}.table"] = torch.cat([table, context.flatten(0, 1)])
            tensors[f"{branch}.rows"] = torch.cat([rows, new.unflatten(0, context.shape[:2])])
        return replace(self, tensors=tensors)


@dataclass(frozen=True)
class NewLabels:
    """What new labels get without tuning.

    `groups`: of each label the nearest fine group, as a place in the list of groups. `contexts`: of
    each branch that has tokens `(labels, tokens, context_width)`.
    """

    features: ClassFeatures
    groups: list[int]
    contexts: dict[str, Tensor]


@torch.no_grad()
def prompt_new_labels(
    vlm: VLM,
    labels: Sequence[str],
    categories: CategoryList,
    groups: Sequence[Sequence[int]],
    tokens: TunedTokens,
) -> NewLabels:
    """Prompts for labels that were not tuned; hand-crafted ones on a branch without tokens.

    `groups`: the categories of each fine group, as places on the classes axis.
    """
    tuned = F.normalize(anchor_features(vlm, categories), dim=-1)
    anchor = vlm.encode_text([ANCHOR_TEMPLATE.format(label) for label in labels])
    centres = torch.stack([F.normalize(tuned[list(group)].mean(0), dim=-1) for group in groups])
    nearest = (F.normalize(anchor, dim=-1) @ centres.T).argmax(1).tolist()
    contexts, features = {}, []
    for branch in BRANCHES:
        of_branch = F.normalize(anchor, dim=-1)
        context = tokens.context(branch)
        if context is not None:
            contexts[branch] = torch.stack([context[list(groups[g])].mean(0) for g in nearest])
            encoded = vlm.encode_prompts(contexts[branch].to(vlm.device), list(labels))
            prompted = F.normalize(encoded + anchor, dim=-1)
            of_branch = interpolate_with_anchor(prompted, anchor, tokens.anchor_weights[branch])
        features.append(of_branch.cpu())
    return NewLabels(ClassFeatures(*features), nearest, contexts)


def meant_labels(labels: Sequence[str], categories: CategoryList) -> tuple[str, ...]:
    """What a person means: a category, spelled anyhow or by a synonym, by its name; a new label.

    Raises:
        ValueError: in one line, for one of a category's kinds, and as `check_labels` does.
    """
    kinds = {name_key(kind): of.name for of in categories.categories for kind in of.kinds}
    meant = []
    for label in labels:
        place = categories.find(label)
        if place is None and (of := kinds.get(name_key(label))):
            raise ValueError(f"label {label!r} is a kind of {of!r}: give {of!r}")
        meant.append(label if place is None else categories.names[place])
    check_labels(meant)
    return tuple(meant)


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that are no plain names, none at all, or one twice.

    Raises:
        ValueError: in one line.
    """
    if not labels:
        raise ValueError("no label is given")
    seen: dict[str, str] = {}
    for label in labels:
        key = name_key(category_named(label).name)
        if key in seen:
            raise ValueError(f"label {seen[key]!r} is given twice, by name or synonym")
        seen[key] = label
