"""The class features of the compared methods: the untuned baselines and the tuned prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE, VLM
from prompt_tuning.categories import CategoryList
from prompt_tuning.clip_templates import CLIP_TEMPLATES
from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.prompts import anchor_features

# Enough that the figures of small runs do not depend on it.
_TEXTS_AT_ONCE = 8192
_ENTRIES_AT_ONCE = 2**24

UNTUNED = ("zero_shot", "templates", "synonym_average", "caption_average")


@dataclass(frozen=True)
class ClassFeatures:
    """Unit features of all classes for both branches, each `(classes, dim)`."""

    pooled: Tensor
    local: Tensor

    def to(self, device: torch.device) -> ClassFeatures:
        """The same on another device."""
        return ClassFeatures(self.pooled.to(device), self.local.to(device))


@dataclass(frozen=True)
class MethodFeatures:
    """The class features of every baseline, by its name, and of every tuned seed."""

    untuned: dict[str, ClassFeatures]
    tuned: dict[int, ClassFeatures]

    def save(self, file: Path) -> None:
        """Write them under keys such as `zero_shot.global` and `tuned.0.local`."""
        tuned = {f"tuned.{seed}": classes for seed, classes in self.tuned.items()}
        save_file(
            {
                f"{name}.{branch}": features.cpu().contiguous()
                for name, classes in {**self.untuned, **tuned}.items()
                for branch, features in (("global", classes.pooled), ("local", classes.local))
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> MethodFeatures:
        """Read what `save` wrote; seeds in ascending order."""
        tensors = load_file(file)

        def classes(name: str) -> ClassFeatures:
            return ClassFeatures(tensors[f"{name}.global"], tensors[f"{name}.local"])

        seeds = {int(key.split(".")[1]) for key in tensors if key.startswith("tuned.")}
        return cls(
            untuned={method: classes(method) for method in UNTUNED},
            tuned={seed: classes(f"tuned.{seed}") for seed in sorted(seeds)},
        )


def untuned_baselines(
    vlm: VLM, categories: CategoryList, train: CaptionSet
) -> dict[str, ClassFeatures]:
    """The methods that tuning must beat; each has the same class features in both branches.

    `zero_shot`: "a photo of a {name}.". `templates`: the mean over CLIP's 80 templates (Radford et
    al., 2021, arXiv 2103.00020, §3.1.4). `synonym_average`: the mean over the category's name,
    synonyms and kinds. `caption_average`: the mean feature of the class's training captions.
    """

    def text_average(texts: list[list[str]]) -> Tensor:
        """The mean of each class's texts: `(classes, dim)`."""
        means: list[Tensor] = []
        at_once = max(1, _TEXTS_AT_ONCE // max(map(len, texts)))
        for first in range(0, len(texts), at_once):
            some = texts[first : first + at_once]
            flat = [text for class_texts in some for text in class_texts]
            encoded = F.normalize(vlm.encode_text(flat), dim=-1).split([len(t) for t in some])
            means += [features.mean(0) for features in encoded]
        return torch.stack(means)

    names = [[*category.names, *category.kinds] for category in categories.categories]
    synonyms = [[ANCHOR_TEMPLATE.format(name) for name in own] for own in names]
    templates = [
        [template.format(name) for template in CLIP_TEMPLATES] for name in categories.names
    ]
    # A class without captions gets its anchor in place of their average.
    anchor = anchor_features(vlm, categories)
    captions, shown = _caption_sums(train, len(categories))
    captions = torch.where(shown[:, None], captions.to(anchor.device), anchor)
    return {
        name: ClassFeatures(F.normalize(features, dim=-1), F.normalize(features, dim=-1))
        for name, features in (
            ("zero_shot", anchor),
            ("templates", text_average(templates)),
            ("synonym_average", text_average(synonyms)),
            ("caption_average", captions),
        )
    }


def _caption_sums(train: CaptionSet, classes: int) -> tuple[Tensor, Tensor]:
    """The sum of the features of each class's captions, `(classes, dim)`, and which have any."""
    dim = train.features.pooled[train.rows[:1]].shape[1]
    total, shown = torch.zeros(classes, dim), torch.zeros(classes, dtype=torch.bool)
    for rows in train.rows.split(max(1, _ENTRIES_AT_ONCE // max(classes, dim))):
        labels = train.labels[rows]
        total += labels.float().T @ train.features.pooled[rows].float()
        shown |= labels.any(0)
    return total, shown
