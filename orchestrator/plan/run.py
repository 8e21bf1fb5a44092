"""The plan of a run: its stages with their keys, computed before anything runs.

A stage's entry module has the function that fills its folder. The stage's key contains the code of
all modules that the entry module imports.
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
from prompt_tuning.backbones.base import IMAGE_SIDE, VLMSettings
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets.registry import read_photos
from prompt_tuning.datasets.stamps import stamps_hash
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.images import readable_formats
from prompt_tuning.storage import file_digest
from workers.placement import NodeSettings, Placement
from workers.stage import Stage, plan_stage

_VLM_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "pillow")
# The fields of `tuning` that are not in the key: `share` has what follows from them.
_WHERE_WORKERS_RUN = {"gpus_per_worker", "cpus_per_worker", *NodeSettings.model_fields}
# The fields of a config that change nothing before the tuning.
TUNING = ("losses", "prompts", "scoring", "seeds", "tuning")


@dataclass(frozen=True)
class ImagesPlan:
    """The labelled images to evaluate on and their features; both None if there are no images.

    `vlm_text`: what text features depend on (all of the VLM except `IMAGE_SIDE`).
    """

    settings: EvaluationSettings
    vlm: VLMSettings
    vlm_text: dict[str, object]
    resources: Resources
    categories: CategoryList
    cache: Path
    images: Stage | None
    features: Stage | None

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order in which they run; none if there are no images."""
        return [stage for stage in (self.images, self.features) if stage]

    @property
    def select(self) -> bool:
        """Whether a half of the images chooses the artifact's seed."""
        return self.images is not None and self.settings.select_on == "evaluation"


@dataclass(frozen=True)
class Plan:
    """All that a run has decided before it starts.

    `groups`: the groups of categories that the config gives, if any. `tuning`: by seed.
    `tuning_run`: the key that all seeds share, under which Ray Train keeps its checkpoints.
    """

    config: RunConfig
    resources: Resources
    categories: CategoryList
    cache: Path
    run_folder: Path
    groups: Hierarchy | None
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
        """All stages in the order in which they run."""
        text = [self.knowledge.stage, self.captions, self.hierarchy]
        return [*text, *self.tuning.values(), *self.labelled.stages, self.evaluation]


def make_plan(config: RunConfig, resources: Resources, stamps: Path | None) -> Plan:
    """Check everything that can be checked without running, and key every stage.

    `stamps`: the folder of the scenes' cut-outs; None if there is none. Raises InputError.
    """
    knowledge = plan_knowledge(config, resources)
    config = knowledge.config
    if not config.knowledge.questions.asks_something:
        check_coverage(knowledge.coverage(), config.captions)
    categories, cache = knowledge.categories, knowledge.cache
    groups = load_groups(config, categories)
    labelled = plan_images(config.evaluation, config.vlm, resources, cache, categories, stamps)
    captions = plan_stage(
        cache,
        "caption_features",
        "orchestrator.stages.features",
        (knowledge.stage,),
        vlm=labelled.vlm_text,
    )
    clustered_on = {"auto": labelled.vlm_text, "llm": knowledge.stage.key}
    hierarchy = plan_stage(
        cache,
        "hierarchy",
        "orchestrator.stages.hierarchy",
        groups=asdict(groups) if groups else config.hierarchy.model_dump(),
        categories=list(categories.names),
        clustered_on=clustered_on.get(config.hierarchy.groups),
    )
    return Plan(
        config=config,
        resources=resources,
        categories=categories,
        cache=cache,
        run_folder=knowledge.run_folder,
        groups=groups,
        knowledge=knowledge,
        captions=captions,
        hierarchy=hierarchy,
        labelled=labelled,
        **_plan_tuning(config, captions, hierarchy, labelled),
    )


def retune(plan: Plan, config: RunConfig) -> Plan:
    """Plan a config that differs from the plan's own only in the fields `TUNING`.

    Raises InputError.
    """
    # The plan has resolved which language model `auto` means.
    config = config.model_copy(update={"knowledge": plan.config.knowledge})
    tuning = _plan_tuning(config, plan.captions, plan.hierarchy, plan.labelled)
    return replace(plan, config=config, **tuning)


def _plan_tuning(
    config: RunConfig, captions: Stage, hierarchy: Stage, labelled: ImagesPlan
) -> dict[str, Any]:
    """Key the stages that tune and evaluate: the last four fields of a `Plan`."""
    cache, categories = labelled.cache, labelled.categories
    try:
        backbone_class(config.vlm).check_prompt_length(
            config.vlm, config.prompts.context_tokens, list(categories.names)
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    share = place_workers(config.tuning, labelled.resources)
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
        tuning=config.tuning.model_dump(exclude=_WHERE_WORKERS_RUN),
        share={"cpus": share.cpus, "gpus": share.gpus},
    )
    tuning = {seed: tuning_stage(seed=seed) for seed in config.seeds}
    evaluation = plan_stage(
        cache,
        "evaluation",
        "orchestrator.stages.evaluation",
        (captions, *tuning.values(), *labelled.stages),
        vlm={**labelled.vlm_text, **config.vlm.model_dump(include=set(IMAGE_SIDE))},
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
) -> ImagesPlan:
    """Find the labelled images that the settings name, and key them and their features.

    `stamps`: as in `make_plan`; without them there are no scenes. Raises InputError.
    """
    vlm_text = _text_side(vlm, resources)
    images = features = None
    features_stage = partial(
        plan_stage,
        cache,
        "image_features",
        "orchestrator.stages.features",
        vlm={**vlm_text, **vlm.model_dump(include=set(IMAGE_SIDE))},
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
        # By content: the same images share features under other names, categories or options.
        features = features_stage(contents=photos.contents, formats=formats)
    return ImagesPlan(settings, vlm, vlm_text, resources, categories, cache, images, features)


def _text_side(vlm: VLMSettings, resources: Resources) -> dict[str, object]:
    try:
        backbone = backbone_class(vlm)
        backbone.check_settings(vlm)
        weights = [file_digest(path) for path in backbone.weight_files(vlm)]
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "settings": vlm.model_dump(exclude=set(IMAGE_SIDE)),
        "weights": weights,
        "versions": {package: version(package) for package in _VLM_PACKAGES},
        "device": "cuda" if resources.gpus else "cpu",
    }
