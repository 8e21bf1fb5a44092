"""The plan of a run: its stages with their keys, worked out before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

from orchestrator.cluster.placement import WorkerShare, place_workers
from orchestrator.cluster.resources import Resources
from orchestrator.config.inputs import load_groups
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.knowledge import KnowledgePlan, plan_knowledge
from prompt_tuning.backbones import check_prompt_length, check_vlm, weight_files
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import CaptionSettings
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets.registry import read_photos
from prompt_tuning.datasets.stamps import stamps_hash
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.images import readable_formats
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.storage import file_digest
from workers.stage import Stage, plan_stage

_VLM_MODULES = (
    "prompt_tuning.backbones",
    "prompt_tuning.backbones.imagenet_bridge",
    "prompt_tuning.features",
    "prompt_tuning.images",
    "prompt_tuning.backbones.checkpoint",
    "prompt_tuning.backbones.clip",
    "prompt_tuning.backbones.noun_phrases",
    "prompt_tuning.plain_text",
    "prompt_tuning.backbones.siglip",
    "prompt_tuning.backbones.base",
    "workers.features",
)
_VLM_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "pillow")
_PHOTO_MODULES = ("prompt_tuning.datasets.labelled_images", "prompt_tuning.images")
# The fields of a config on which nothing depends that comes before tuning.
TUNING = ("losses", "prompts", "scoring", "seeds", "tuning")
_TUNING_MODULES = (
    "prompt_tuning.tuning.losses",
    "prompt_tuning.evaluation.metrics",
    "prompt_tuning.tuning.prompt_encoder",
    "prompt_tuning.tuning.prompt_tree",
    "prompt_tuning.tuning.prompts",
    "prompt_tuning.tuning.scoring",
    "prompt_tuning.tuning.caption_set",
    "prompt_tuning.tuning.class_prompts",
    "prompt_tuning.tuning.trainer",
    "workers.tuning.driver",
    "workers.tuning.job",
    "workers.tuning.worker",
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
class _Inputs(ImagesPlan):
    """What is decided before anything is tuned; `vlm_text`: of `text_side`."""

    groups: Hierarchy | None
    run_folder: Path
    knowledge: KnowledgePlan
    captions: Stage
    hierarchy: Stage
    vlm_text: dict[str, object]


@dataclass(frozen=True)
class Plan(_Inputs):
    """All that a run has decided before it starts.

    `tuning`: by seed. `tuning_run`: what its seeds share, whichever are to do: Ray Train's name.
    """

    share: WorkerShare
    tuning: dict[int, Stage]
    tuning_run: str
    evaluation: Stage

    @property
    def shared(self) -> list[Stage]:
        """The stages that do not depend on how prompts are tuned, in their order."""
        measured_on = [stage for stage in (self.images, self.image_features) if stage]
        return [self.knowledge.stage, self.captions, self.hierarchy, *measured_on]

    @property
    def stages(self) -> list[Stage]:
        """All, in the order in which they run: images come last."""
        before, measured_on = self.shared[:3], self.shared[3:]
        return [*before, *self.tuning.values(), *measured_on, self.evaluation]


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
    captions = plan_stage(cache, "caption_features", _VLM_MODULES, (knowledge.stage,), vlm=vlm_text)
    clustered_on = {"auto": vlm_text, "llm": knowledge.stage.key}.get(config.hierarchy.groups)
    hierarchy = plan_stage(
        cache,
        "hierarchy",
        ("prompt_tuning.hierarchy", "prompt_tuning.tuning.prompts", *_VLM_MODULES),
        groups=asdict(groups) if groups else config.hierarchy.model_dump(),
        categories=list(categories.names),
        clustered_on=clustered_on,
    )
    measured_on = plan_images(config, resources, cache, categories, stamps, vlm_text)
    inputs = _Inputs(
        config=config,
        resources=resources,
        categories=categories,
        cache=cache,
        images=measured_on.images,
        image_features=measured_on.image_features,
        groups=groups,
        run_folder=knowledge.run_folder,
        knowledge=knowledge,
        captions=captions,
        hierarchy=hierarchy,
        vlm_text=vlm_text,
    )
    return _plan_tuning(inputs)


def check_coverage(captions: CaptionCoverage, settings: CaptionSettings) -> None:
    """Refuse captions that cannot be tuned on, and labels without any unless these are allowed.

    Raises:
        InputError: in one line, with what would do.
    """
    try:
        captions.check(settings.allow_missing, "captions.allow_missing: true")
    except ValueError as error:
        raise InputError(f"captions: {error}") from None


def retune(plan: Plan, config: RunConfig) -> Plan:
    """The plan of a config that differs from a plan's in nothing but the fields in `TUNING`.

    Raises:
        InputError: for what a person has to change.
    """
    inputs = {field.name: getattr(plan, field.name) for field in fields(_Inputs)}
    # With the language model that the plan has found.
    inputs["config"] = config.model_copy(update={"knowledge": plan.config.knowledge})
    return _plan_tuning(_Inputs(**inputs))


def _plan_tuning(inputs: _Inputs) -> Plan:
    """Key the stages that tune and evaluate, given all that comes before them."""
    config, resources, categories = inputs.config, inputs.resources, inputs.categories
    try:
        check_prompt_length(config.vlm, config.prompts.context_tokens, list(categories.names))
    except ValueError as error:
        raise InputError(str(error)) from None
    share = place_workers(config.tuning, resources)
    tuning_stage = partial(
        plan_stage,
        inputs.cache,
        "tuning",
        (*_TUNING_MODULES, *_VLM_MODULES),
        (inputs.captions, inputs.hierarchy),
        held_out=config.captions.held_out,
        prompts=config.prompts.model_dump(),
        scoring=config.scoring.model_dump(),
        losses=config.losses.model_dump(),
        tuning=config.tuning.model_dump(exclude={"gpus_per_worker", "cpus_per_worker", "pool"}),
        share={"cpus": share.cpus, "gpus": share.gpus},
    )
    tuning = {seed: tuning_stage(seed=seed) for seed in config.seeds}
    measured_on = tuple(stage for stage in (inputs.images, inputs.image_features) if stage)
    evaluation = plan_stage(
        inputs.cache,
        "evaluation",
        (
            "orchestrator.stages.evaluation",
            "prompt_tuning.tagging.calibration",
            "prompt_tuning.knowledge.caption_coverage",
            "prompt_tuning.evaluation.baselines",
            "prompt_tuning.evaluation.compare",
            "prompt_tuning.evaluation.bootstrap",
            "prompt_tuning.evaluation.selection",
            *_TUNING_MODULES,
        ),
        (inputs.captions, *tuning.values(), *measured_on),
        vlm={**inputs.vlm_text, "resolution": config.vlm.resolution},
        scoring=config.scoring.model_dump(),
        categories=categories.model_dump(mode="json"),
        split_seed=config.evaluation.split_seed if inputs.images_select else None,
    )
    known = {field.name: getattr(inputs, field.name) for field in fields(_Inputs)}
    return Plan(
        **known,
        share=share,
        tuning=tuning,
        tuning_run=tuning_stage().key,
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
            ("prompt_tuning.datasets.scenes",),
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
        formats = readable_formats()  # others are left out
        images = plan_stage(
            cache, "images", _PHOTO_MODULES, photos=photos.digest(), formats=formats
        )
        # Other categories, options or names want the same features of the same images.
        image_features = plan_stage(
            cache,
            "image_features",
            _VLM_MODULES,
            vlm=vlm,
            contents=photos.contents,
            formats=formats,
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
