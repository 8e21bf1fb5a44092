"""The plan of a run: its stages with their keys, worked out before anything runs.

A stage's entry module is the one whose function fills its folder; its key has the code of all that
this module imports.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.cluster.placement import place_workers
from orchestrator.cluster.resources import Resources
from orchestrator.config.inputs import load_groups
from orchestrator.config.models import EvaluationSettings, RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.knowledge import KnowledgePlan, check_coverage, plan_knowledge
from prompt_tuning.backbones import backbone_class
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets.registry import read_photos
from prompt_tuning.datasets.stamps import stamps_hash
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.images import readable_formats
from prompt_tuning.storage import file_digest
from workers.placement import Placement
from workers.stage import Stage, plan_stage

_VLM_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "pillow")
# The fields of a config that change nothing before the tuning.
TUNING = ("losses", "prompts", "scoring", "seeds", "tuning")


@dataclass(frozen=True)
class ImagesPlan:
    """The labelled images to evaluate on, and their features; None where there are no images."""

    settings: EvaluationSettings
    vlm: VLMSettings
    resources: Resources
    categories: CategoryList
    cache: Path
    images: Stage | None
    features: Stage | None

    @property
    def stages(self) -> list[Stage]:
        """The stages that there are, in their order."""
        return [stage for stage in (self.images, self.features) if stage]

    @property
    def select(self) -> bool:
        """Whether a half of the images chooses the artifact's seed."""
        return self.images is not None and self.settings.select_on == "evaluation"


@dataclass(frozen=True)
class Plan:
    """All that a run has decided before it starts.

    `groups`: those that the config gives, if it does. `vlm_text`: see `text_side`. `tuning`: by
    seed. `tuning_run`: the key that all seeds share, by which Ray Train finds its checkpoints.
    """

    config: RunConfig
    resources: Resources
    categories: CategoryList
    cache: Path
    run_folder: Path
    groups: Hierarchy | None
    vlm_text: dict[str, object]
    knowledge: KnowledgePlan
    captions: Stage
    hierarchy: Stage
    labelled: ImagesPlan
    share: Placement
    tuning: dict[int, Stage]
    tuning_run: str
    evaluation: Stage

    @property
    def shared(self) -> list[Stage]:
        """The stages that do not depend on how prompts are tuned, in their order."""
        return [self.knowledge.stage, self.captions, self.hierarchy, *self.labelled.stages]

    @property
    def stages(self) -> list[Stage]:
        """All stages, in the order in which they run: images come last."""
        text = [self.knowledge.stage, self.captions, self.hierarchy]
        return [*text, *self.tuning.values(), *self.labelled.stages, self.evaluation]


def make_plan(config: RunConfig, resources: Resources, stamps: Path | None) -> Plan:
    """Check everything that can be checked without running, and key every stage.

    `stamps`: the folder of the scenes' cut-outs, None where there is none.

    Raises:
        InputError: for what a person has to change.
    """
    knowledge = plan_knowledge(config, resources)
    config = knowledge.config
    if not config.knowledge.questions.asks_something:
        check_coverage(knowledge.coverage(), config.captions)
    categories, cache = knowledge.categories, knowledge.cache
    groups = load_groups(config, categories)
    vlm_text = text_side(config.vlm, resources)
    captions = plan_stage(
        cache, "caption_features", "orchestrator.stages.features", (knowledge.stage,), vlm=vlm_text
    )
    clustered_on = {"auto": vlm_text, "llm": knowledge.stage.key}.get(config.hierarchy.groups)
    hierarchy = plan_stage(
        cache,
        "hierarchy",
        "orchestrator.stages.hierarchy",
        groups=asdict(groups) if groups else config.hierarchy.model_dump(),
        categories=list(categories.names),
        clustered_on=clustered_on,
    )
    labelled = plan_images(
        config.evaluation, config.vlm, resources, cache, categories, stamps, vlm_text
    )
    return Plan(
        config=config,
        resources=resources,
        categories=categories,
        cache=cache,
        run_folder=knowledge.run_folder,
        groups=groups,
        vlm_text=vlm_text,
        knowledge=knowledge,
        captions=captions,
        hierarchy=hierarchy,
        labelled=labelled,
        **_plan_tuning(config, resources, captions, hierarchy, labelled, vlm_text),
    )


def retune(plan: Plan, config: RunConfig) -> Plan:
    """The plan for a config that differs from the plan's own only in the fields in `TUNING`.

    Raises:
        InputError: for what a person has to change.
    """
    # With the language model that the plan has found.
    config = config.model_copy(update={"knowledge": plan.config.knowledge})
    tuning = _plan_tuning(
        config, plan.resources, plan.captions, plan.hierarchy, plan.labelled, plan.vlm_text
    )
    return replace(plan, config=config, **tuning)


def _plan_tuning(
    config: RunConfig,
    resources: Resources,
    captions: Stage,
    hierarchy: Stage,
    labelled: ImagesPlan,
    vlm_text: dict[str, object],
) -> dict[str, Any]:
    """Key the stages that tune and evaluate: the last four fields of a `Plan`."""
    cache, categories = labelled.cache, labelled.categories
    try:
        backbone_class(config.vlm).check_prompt_length(
            config.vlm, config.prompts.context_tokens, list(categories.names)
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    share = place_workers(config.tuning, resources)
    tuning_stage = partial(
        plan_stage,
        cache,
        "tuning",
        "orchestrator.stages.tuning",
        (captions, hierarchy),
        held_out=config.captions.held_out,
        prompts=config.prompts.model_dump(),
        scoring=config.scoring.model_dump(),
        losses=config.losses.model_dump(),
        tuning=config.tuning.model_dump(exclude={"gpus_per_worker", "cpus_per_worker", "pool"}),
        share={"cpus": share.cpus, "gpus": share.gpus},
    )
    tuning = {seed: tuning_stage(seed=seed) for seed in config.seeds}
    evaluation = plan_stage(
        cache,
        "evaluation",
        "orchestrator.stages.evaluation",
        (captions, *tuning.values(), *labelled.stages),
        vlm={**vlm_text, "resolution": config.vlm.resolution},
        scoring=config.scoring.model_dump(),
        categories=categories.model_dump(mode="json"),
        split_seed=config.evaluation.split_seed if labelled.select else None,
    )
    return {
        "share": share,
        "tuning": tuning,
        "tuning_run": tuning_stage().key,
        "evaluation": evaluation,
    }


def plan_images(
    settings: EvaluationSettings,
    vlm: VLMSettings,
    resources: Resources,
    cache: Path,
    categories: CategoryList,
    stamps: Path | None,
    vlm_text: dict[str, object],
) -> ImagesPlan:
    """Find the labelled images that the settings name, and key them and their features.

    `stamps`: as in `make_plan`; without them there are no scenes. `vlm_text`: see `text_side`.

    Raises:
        InputError: for what a person has to change.
    """
    images = features = None
    features_stage = partial(
        plan_stage,
        cache,
        "image_features",
        "orchestrator.stages.features",
        vlm={**vlm_text, "resolution": vlm.resolution},
    )
    if settings.dataset == "scenes" and stamps is not None:
        images = plan_stage(
            cache,
            "images",
            "prompt_tuning.datasets.scenes",
            scenes=settings.scenes.model_dump(),
            stamps=stamps_hash(stamps),
            categories=built_in_text("scenes_stamps"),
        )
        features = features_stage((images,))
    elif settings.dataset not in ("scenes", "none"):
        try:
            photos = read_photos(settings, categories)
        except (ValueError, OSError) as error:
            raise InputError(f"evaluation.root: {error}") from None
        formats = readable_formats()  # images of other formats are left out
        images = plan_stage(
            cache,
            "images",
            "orchestrator.stages.images",
            photos=photos.digest(),
            formats=formats,
        )
        # By content: other categories, options or names need the same features of the same images.
        features = features_stage(contents=photos.contents, formats=formats)
    return ImagesPlan(settings, vlm, resources, categories, cache, images, features)


def text_side(vlm: VLMSettings, resources: Resources) -> dict[str, object]:
    """What the features of texts depend on: all of a VLM except the resolution of images.

    Raises:
        InputError: if no backbone can follow the settings.
    """
    try:
        backbone = backbone_class(vlm)
        backbone.check_settings(vlm)
        weights = [file_digest(path) for path in backbone.weight_files(vlm)]
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "settings": vlm.model_dump(exclude={"resolution"}),
        "weights": weights,
        "versions": {package: version(package) for package in _VLM_PACKAGES},
        "device": "cuda" if resources.gpus else "cpu",
    }
