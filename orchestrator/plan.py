"""The plan of a run: its stages with their keys, worked out before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from orchestrator.config import RunConfig, load_groups
from orchestrator.config_file import InputError
from orchestrator.knowledge_plan import KnowledgePlan, plan_knowledge
from orchestrator.preflight import Resources, WorkerShare, place_workers
from orchestrator.stages import Stage, plan_stage
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets import read_photos
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.scenes import stamps_hash
from prompt_tuning.store import file_digest
from prompt_tuning.vlm import VLMSettings, check_prompt_length, check_vlm, weight_files

_VLM_MODULES = (
    "prompt_tuning.embedded_vlm",
    "prompt_tuning.features",
    "prompt_tuning.image_files",
    "prompt_tuning.open_clip_checkpoint",
    "prompt_tuning.open_clip_vlm",
    "prompt_tuning.phrases",
    "prompt_tuning.siglip_vlm",
    "prompt_tuning.vlm",
    "workers.feature_workers",
)
_VLM_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "pillow")
_PHOTO_MODULES = ("prompt_tuning.datasets.labelled_images", "prompt_tuning.image_files")
_TUNING_MODULES = (
    "prompt_tuning.losses",
    "prompt_tuning.metrics",
    "prompt_tuning.prompt_encoder",
    "prompt_tuning.prompt_tree",
    "prompt_tuning.prompts",
    "prompt_tuning.scoring",
    "prompt_tuning.tuning",
    "workers.tuning_worker",
)


@dataclass(frozen=True)
class ImagesPlan:
    """Which labelled images are wanted as features of which VLM; `images` is None when none are."""

    config: RunConfig
    resources: Resources
    categories: CategoryList
    cache: Path
    images: Stage | None
    image_features: Stage | None

    @property
    def images_select(self) -> bool:
        """Whether a half of the images chooses the artifact's seed."""
        return self.images is not None and self.config.evaluation.select_on == "evaluation"


@dataclass(frozen=True)
class Plan(ImagesPlan):
    """All that a run has decided before it starts."""

    groups: Hierarchy | None
    run_folder: Path
    share: WorkerShare
    knowledge: KnowledgePlan
    captions: Stage
    hierarchy: Stage
    tuning: dict[int, Stage]
    evaluation: Stage

    @property
    def stages(self) -> list[Stage]:
        """In the order in which they run."""
        optional = (self.images, self.image_features)
        return [
            self.knowledge.stage,
            self.captions,
            self.hierarchy,
            *self.tuning.values(),
            *(stage for stage in optional if stage),
            self.evaluation,
        ]


def make_plan(config: RunConfig, resources: Resources, stamps: Path | None) -> Plan:
    """Check everything that can be checked without running, and key every stage.

    `stamps`: the folder of the scenes' cut-outs, None where there is none.

    Raises:
        InputError: for what a person has to change.
    """
    knowledge = plan_knowledge(config, resources)
    config = knowledge.config
    categories, cache = knowledge.categories, knowledge.cache
    groups = load_groups(config, categories)
    vlm_text = text_side(config.vlm, resources)
    try:
        branches = (config.prompts.global_branch, config.prompts.local_branch)
        tokens = max(branch.context_tokens(config.hierarchy.depth) for branch in branches)
        check_prompt_length(config.vlm, tokens, list(categories.names))
    except ValueError as error:
        raise InputError(str(error)) from None
    share = place_workers(config, resources)
    captions = plan_stage(cache, "caption_features", _VLM_MODULES, (knowledge.stage,), vlm=vlm_text)
    clustered_on = {"auto": vlm_text, "llm": knowledge.stage.key}.get(config.hierarchy.groups)
    hierarchy = plan_stage(
        cache,
        "hierarchy",
        ("prompt_tuning.hierarchy", "prompt_tuning.prompts", *_VLM_MODULES),
        groups=asdict(groups) if groups else config.hierarchy.model_dump(exclude={"depth"}),
        categories=list(categories.names),
        clustered_on=clustered_on,
    )
    tuning = {
        seed: plan_stage(
            cache,
            "tuning",
            (*_TUNING_MODULES, *_VLM_MODULES),
            (captions, hierarchy),
            seed=seed,
            depth=config.hierarchy.depth,
            held_out=config.captions.held_out,
            prompts=config.prompts.model_dump(),
            scoring=config.scoring.model_dump(),
            losses=config.losses.model_dump(),
            tuning=config.tuning.model_dump(exclude={"gpus_per_worker", "cpus_per_worker", "pool"}),
            share={"cpus": share.cpus, "gpus": share.gpus},
        )
        for seed in config.seeds
    }
    measured_on = plan_images(config, resources, cache, categories, stamps, vlm_text)
    images, image_features = measured_on.images, measured_on.image_features
    evaluation = plan_stage(
        cache,
        "evaluation",
        (
            "orchestrator.evaluation_stages",
            "prompt_tuning.evaluation",
            "prompt_tuning.intervals",
            "prompt_tuning.selection",
            *_TUNING_MODULES,
        ),
        (captions, *tuning.values(), *(stage for stage in (images, image_features) if stage)),
        vlm={**vlm_text, "resolution": config.vlm.resolution},
        scoring=config.scoring.model_dump(),
        categories=categories.model_dump(mode="json"),
        split_seed=config.evaluation.split_seed if measured_on.images_select else None,
    )
    return Plan(
        config=config,
        resources=resources,
        categories=categories,
        groups=groups,
        cache=cache,
        run_folder=knowledge.run_folder,
        share=share,
        knowledge=knowledge,
        captions=captions,
        hierarchy=hierarchy,
        tuning=tuning,
        images=images,
        image_features=image_features,
        evaluation=evaluation,
    )


def plan_images(
    config: RunConfig,
    resources: Resources,
    cache: Path,
    categories: CategoryList,
    stamps: Path | None,
    vlm_text: dict[str, object],
) -> ImagesPlan:
    """Find the labelled images that the config names, and key them and their features.

    `stamps`: as in `make_plan`; without them there are no scenes. `vlm_text`: of `text_side`.

    Raises:
        InputError: for what a person has to change.
    """
    settings = config.evaluation
    vlm = {**vlm_text, "resolution": config.vlm.resolution}
    images = image_features = None
    if settings.dataset == "scenes" and stamps is not None:
        images = plan_stage(
            cache,
            "images",
            ("prompt_tuning.scenes",),
            scenes=settings.scenes.model_dump(),
            stamps=stamps_hash(stamps),
            categories=built_in_text("scenes_stamps"),
        )
        image_features = plan_stage(cache, "image_features", _VLM_MODULES, (images,), vlm=vlm)
    elif settings.dataset not in ("scenes", "none"):
        try:
            photos = read_photos(settings, categories)
        except (ValueError, OSError) as error:
            raise InputError(f"evaluation.root: {error}") from None
        # What the readers make of their files is in the key, so their source need not be.
        images = plan_stage(cache, "images", _PHOTO_MODULES, photos=photos.digest())
        # Other categories or options want the same features of the same pictures.
        pictures = replace(photos, labels=photos.labels[:0], ignored=None)
        image_features = plan_stage(
            cache, "image_features", _VLM_MODULES, vlm=vlm, pictures=pictures.digest()
        )
    return ImagesPlan(config, resources, categories, cache, images, image_features)


def text_side(vlm: VLMSettings, resources: Resources) -> dict[str, object]:
    """What the features of texts depend on: all of a VLM but the resolution of images.

    Raises:
        InputError: for settings that no backbone can follow.
    """
    try:
        check_vlm(vlm)
        weights = [file_digest(path) for path in weight_files(vlm)]
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "settings": vlm.model_dump(exclude={"resolution"}),
        "weights": weights,
        "versions": {package: version(package) for package in _VLM_PACKAGES},
        "device": "cuda" if resources.gpus else "cpu",
    }
