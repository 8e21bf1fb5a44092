"""What is tuned, and how, unless a person says otherwise: each kind of backbone has its own recipe.

A recipe's values replace the fields' own defaults. What each rests on stands beside it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from prompt_tuning.settings import Settings
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import TuningSettings

RECIPES: dict[str, dict[str, Any]] = {
    # Measured: `prompts` on label lists and images that were left out in turn (docs/left-out.md),
    # the rest on composed scenes (docs/figures.md).
    "embedded": {
        "prompts.depth": 3,
        "prompts.global_branch.learn": "residuals",
        "prompts.local_branch.learn": "residuals",
        "prompts.local_branch.anchor_weight": 0.5,
        "losses.margin": 0.25,
        "losses.local_margin": 2.0,
        "tuning.optimizer": "adam",
        "tuning.lr": 0.02,
        "tuning.epochs": 10,
        "tuning.batch": 256,
        "tuning.milestones": (7,),
        "tuning.noise": {"relative": 0.5},
        "tuning.captions_per_item": 4,
    },
    # Published: the released code of arXiv 2403.01209, with two differences that are argued, not
    # measured. It tunes in batches of 512 and averages softmaxes over classes. A list of one's own
    # has hundreds of captions, so 512 would be a step or two an epoch; and a softmax would make the
    # labels of an image compete. configs/paper.yaml has both as released.
    "open_clip": {
        "prompts.depth": 4,
        "prompts.global_branch.shared": 16,
        "prompts.global_branch.fine": 8,
        "prompts.global_branch.coarse": 4,
        "prompts.global_branch.category": 4,
        "prompts.global_branch.order": ("shared", "fine", "coarse", "category"),
        "prompts.local_branch.hierarchical": False,
        "prompts.local_branch.shared": 32,
        "losses.margin": 1.0,
        "losses.order_on": ("global",),
        "tuning.optimizer": "sgd",
        "tuning.lr": 0.002,
        "tuning.weight_decay": 0.0005,
        "tuning.epochs": 20,
        "tuning.batch": 64,
        "tuning.milestones": (5, 10, 15),
        "tuning.noise": {"std": 0.1},
        "tuning.captions_per_item": 1,
    },
}


class Recipe(Settings):
    """The settings of a tuning."""

    prompts: PromptSettings = PromptSettings()
    scoring: ScoringSettings = ScoringSettings()
    losses: LossSettings = LossSettings()
    tuning: TuningSettings = TuningSettings()


def recipe_with(kind: str, given: dict[str, Settings]) -> Recipe:
    """The recipe of a kind of backbone (`VLMSettings.kind`), where `given` sets no other value.

    `given`: settings by the names of Recipe's fields.
    """
    values = {name: settings.model_dump(exclude_unset=True) for name, settings in given.items()}
    return Recipe.model_validate(with_recipe(kind, values))


def with_recipe(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """A config's plain values, with the recipe's where `given` has none."""
    filled = deepcopy(given)
    for name, value in RECIPES.get(kind, {}).items():
        *sections, field = name.split(".")
        place: Any = filled
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(field, value)
    return filled
