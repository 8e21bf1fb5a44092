"""Tuning on a list of labelled sentences in one process: the method without its job system."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F

from prompt_tuning.backbones.base import VLM
from prompt_tuning.captions import Caption, is_held_out
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.hierarchy import HierarchySettings, cluster_groups
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import calibrate_on_captions
from prompt_tuning.tagging.new_labels import TunedTokens
from prompt_tuning.tuning.caption_set import CaptionSet, caption_labels
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings, anchor_features
from prompt_tuning.tuning.recipe import recipe_with
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import TuningRun, TuningSettings


def tune(
    vlm: VLM,
    categories: Sequence[str | Category],
    sentences: Sequence[tuple[str, Sequence[str]]],
    hierarchy: HierarchySettings = HierarchySettings(),
    prompts: PromptSettings | None = None,
    scoring: ScoringSettings | None = None,
    losses: LossSettings | None = None,
    tuning: TuningSettings | None = None,
    held_out: float = 0.1,
    allow_missing: bool = False,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Artifact:
    """Tune prompts for `categories` on `sentences`, each with the names of what it shows.

    Groups are clustered on text features. Fields of settings that are not given have the values of
    the backbone's recipe (see recipe.py). `allow_missing`: whether to tune even if some categories
    have no sentence to tune on. `on_epoch` gets each epoch's figures.

    Raises:
        ValueError: for a label that is not a category, categories without a sentence, or too few
            sentences to hold some out.
    """
    listed = CategoryList(
        categories=tuple(Category(name=c) if isinstance(c, str) else c for c in categories)
    )
    captions = [_caption(listed, text, labels) for text, labels in sentences]
    CaptionCoverage.of(captions, listed, held_out).check(allow_missing)
    given = {"prompts": prompts, "scoring": scoring, "losses": losses, "tuning": tuning}
    recipe = recipe_with(vlm.settings.kind, {k: v for k, v in given.items() if v is not None})
    prompts, scoring, losses = recipe.prompts, recipe.scoring, recipe.losses
    tuning = recipe.tuning
    whole = CaptionSet.of_all(
        vlm.encode_captions([caption.text for caption in captions]).to("cpu"),
        caption_labels(captions, len(listed)),
    )
    train, validation = whole.split([is_held_out(caption, held_out) for caption in captions])
    unit = F.normalize(anchor_features(vlm, listed), dim=-1).cpu().numpy()
    groups = cluster_groups(unit, listed, hierarchy.coarse, hierarchy.fine)
    class_prompts = ClassPrompts(vlm, listed, groups, prompts, scoring, losses, seed).to(vlm.device)
    run = TuningRun(class_prompts, class_prompts, train, validation, tuning, seed)
    for _ in range(tuning.epochs):
        figures = run.run_epoch()
        if on_epoch:
            on_epoch(figures)
    best = run.best_class_features()
    classes = ClassFeatures(best["global"], best["local"])
    return Artifact(
        categories=listed,
        tree=groups.tree(listed),
        classes=classes,
        tokens=TunedTokens(run.best_tokens(), prompts.anchor_weights),
        geometry=class_prompts.geometry,
        fusion=scoring.fusion,
        calibration=calibrate_on_captions(classes, validation, class_prompts.geometry),
        vlm_settings=vlm.settings,
        vlm=vlm.identity,
    )


def _caption(categories: CategoryList, text: str, labels: Sequence[str]) -> Caption:
    if not labels:
        raise ValueError(f"sentence {text!r}: has no label")
    places = {label: categories.find(label) for label in labels}
    foreign = [label for label, place in places.items() if place is None]
    if foreign:
        raise ValueError(f"sentence {text!r}: {foreign[0]!r} is not a category")
    shown = {place for place in places.values() if place is not None}
    return Caption(text, tuple(sorted(shown)), "sentence")
