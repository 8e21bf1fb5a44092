"""The plan of a run: its stages with their keys, worked out before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
from prompt_tuning.vlm import check_prompt_length, check_vlm, weight_files

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
class Plan:
    """All that a run has decided before it starts; `images` is None when there are none."""

    config: RunConfig
    resources: Resources
    categories: CategoryList
    groups: Hierarchy | None
    cache: Path
    run_folder: Path
    share: WorkerShare
    knowledge: KnowledgePlan
    captions: Stage
    hierarchy: Stage
    tuning: dict[int, Stage]
    images: Stage | None
    image_features: Stage | None
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
    try:
        check_vlm(config.vlm)
        branches = (config.prompts.global_branch, config.prompts.local_branch)
        tokens = max(branch.context_tokens(config.hierarchy.depth) for branch in branches)
        check_prompt_length(config.vlm, tokens, list(categories.names))
        vlm_weights = [file_digest(path) for path in weight_files(config.vlm)]
    except ValueError as error:
        raise InputError(str(error)) from None
    share = place_workers(config, resources)
    vlm_text = {
        "settings": config.vlm.model_dump(exclude={"resolution"}),  # no text depends on that
        "weights": vlm_weights,
        "versions": {package: version(package) for package in _VLM_PACKAGES},
        "device": "cuda" if resources.gpus else "cpu",
    }
    vlm = {**vlm_text, "resolution": config.vlm.resolution}
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
            tuning=config.tuning.model_dump(exclude={"gpus_per_worker", "cpus_per_worker"}),
            share=asdict(share),
        )
        for seed in config.seeds
    }
    images = _images_stage(config, cache, categories, stamps)
    image_features = (
        plan_stage(cache, "image_features", _VLM_MODULES, (images,), vlm=vlm) if images else None
    )
    evaluation = plan_stage(
        cache,
        "evaluation",
        (
            "orchestrator.evaluation_stages",
            "prompt_tuning.evaluation",
            "prompt_tuning.intervals",
            *_TUNING_MODULES,
        ),
        (captions, *tuning.values(), *([image_features] if image_features else [])),
        vlm=vlm,
        scoring=config.scoring.model_dump(),
        categories=categories.model_dump(mode="json"),
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


def _images_stage(
    config: RunConfig, cache: Path, categories: CategoryList, stamps: Path | None
) -> Stage | None:
    """The stage whose result lists the labelled images, None when there are none to be had."""
    settings = config.evaluation
    if settings.dataset == "none" or (settings.dataset == "scenes" and stamps is None):
        return None
    if settings.dataset == "scenes":
        assert stamps is not None
        return plan_stage(
            cache,
            "images",
            ("prompt_tuning.scenes",),
            scenes=settings.scenes.model_dump(),
            stamps=stamps_hash(stamps),
            categories=built_in_text("scenes_stamps"),
        )
    try:
        photos = read_photos(settings, categories)
    except (ValueError, OSError) as error:
        raise InputError(f"evaluation.root: {error}") from None
    # What the readers make of their files is in the key, so their source need not be.
    return plan_stage(
        cache,
        "images",
        ("prompt_tuning.datasets.labelled_images", "prompt_tuning.image_files"),
        photos=photos.digest(),
    )
