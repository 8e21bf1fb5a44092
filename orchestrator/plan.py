"""The plan of a run: its stages with their keys, worked out before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from orchestrator.config import RunConfig, load_categories, load_groups
from orchestrator.config_file import InputError
from orchestrator.preflight import (
    Resources,
    WorkerShare,
    check_folder,
    place_engines,
    place_workers,
)
from orchestrator.stages import Stage, plan_stage
from prompt_tuning.captions import read_caption_file
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets import read_folder
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.image_files import check_image
from prompt_tuning.scenes import stamps_hash
from prompt_tuning.store import digest, file_digest, folder_digest, source_digest
from prompt_tuning.vlm import check_vlm, weight_files
from workers import embedded_llm
from workers.knowledge_pool import Placement
from workers.llm_engine import engine_versions

_TEXT_MODULES = (
    "prompt_tuning.captions",
    "prompt_tuning.categories",
    "prompt_tuning.noun_matching",
    "prompt_tuning.questions",
)
_VLM_MODULES = (
    "prompt_tuning.embedded_vlm",
    "prompt_tuning.features",
    "prompt_tuning.image_files",
    "prompt_tuning.open_clip_vlm",
    "prompt_tuning.phrases",
    "prompt_tuning.vlm",
    "workers.feature_workers",
)
_VLM_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "pillow")
_TUNING_MODULES = (
    "prompt_tuning.losses",
    "prompt_tuning.metrics",
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
    engines: Placement
    share: WorkerShare
    llm_identity: dict[str, object]
    llm_path: Path | str
    knowledge: Stage
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
            self.knowledge,
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
    categories = load_categories(config)
    groups = load_groups(config, categories)
    _check_caption_files(config, categories)
    try:
        check_vlm(config.vlm)
        vlm_weights = [file_digest(path) for path in weight_files(config.vlm)]
    except ValueError as error:
        raise InputError(str(error)) from None
    engines, share = place_engines(config, resources), place_workers(config, resources)
    cache = check_folder(config.paths.cache, "paths.cache")
    runs = check_folder(config.paths.runs, "paths.runs")
    llm_path, llm_content = _llm(config, cache)

    llm_identity: dict[str, object] = {
        "model": llm_content,
        "engine": config.knowledge.llm.model_dump(exclude={"model", "engines", "cpus_per_engine"}),
        "sampling": config.knowledge.sampling.model_dump(),
        "cpus": engines.cpus,
        "gpus": engines.gpus,
        "versions": engine_versions(),
        "source": source_digest("workers.llm_engine", "workers.embedded_llm"),
    }
    knowledge = plan_stage(
        cache,
        "knowledge",
        (
            *_TEXT_MODULES,
            "orchestrator.knowledge_stage",
            "workers.ledger",
            "workers.knowledge_pool",
        ),
        llm=llm_identity,
        templates=built_in_text("questions"),
        categories=categories.model_dump(mode="json"),
        questions=config.knowledge.questions.model_dump(),
        captions=config.captions.model_dump(exclude={"files", "held_out"}),
        files=[file_digest(Path(file)) for file in config.captions.files],
    )
    vlm = {
        "settings": config.vlm.model_dump(),
        "weights": vlm_weights,
        "versions": {package: version(package) for package in _VLM_PACKAGES},
    }
    captions = plan_stage(cache, "caption_features", _VLM_MODULES, (knowledge,), vlm=vlm)
    hierarchy = plan_stage(
        cache,
        "hierarchy",
        ("prompt_tuning.hierarchy", "prompt_tuning.prompts", *_VLM_MODULES),
        groups=asdict(groups) if groups else config.hierarchy.model_dump(exclude={"depth"}),
        categories=list(categories.names),
        vlm=None if groups else vlm,
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
            "prompt_tuning.datasets",
            *_TUNING_MODULES,
        ),
        (captions, *tuning.values(), *([image_features] if image_features else [])),
        scoring=config.scoring.model_dump(),
        categories=categories.model_dump(mode="json"),
    )
    return Plan(
        config=config,
        resources=resources,
        categories=categories,
        groups=groups,
        cache=cache,
        run_folder=runs / config.name,
        engines=engines,
        share=share,
        llm_identity=llm_identity,
        llm_path=llm_path,
        knowledge=knowledge,
        captions=captions,
        hierarchy=hierarchy,
        tuning=tuning,
        images=images,
        image_features=image_features,
        evaluation=evaluation,
    )


def _check_caption_files(config: RunConfig, categories: CategoryList) -> None:
    """Refuse a file of captions that the knowledge stage would stumble over at its end."""
    for file in config.captions.files:
        try:
            read_caption_file(Path(file), categories)
        except UnicodeDecodeError as error:
            raise InputError(f"captions.files: {file}: not UTF-8 (byte {error.start})") from None
        except OSError as error:
            raise InputError(f"captions.files: {file}: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"captions.files: {error}") from None


def _llm(config: RunConfig, cache: Path) -> tuple[Path | str, str]:
    """Where the language model is, and what stands for its content in keys."""
    model = config.knowledge.llm.model
    if model == embedded_llm.EMBEDDED_MODEL:
        try:
            content = embedded_llm.content_digest()
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        versions = [engine_versions()["transformers"], version("gguf")]
        key = digest([content, versions, source_digest("workers.embedded_llm")])
        return cache / "embedded_llm" / key[:20], content
    if Path(model).is_dir():
        if not Path(model, "config.json").is_file():
            raise InputError(f"knowledge.llm.model: {model} has no config.json, so no checkpoint")
        return Path(model), folder_digest(Path(model))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(
            f"knowledge.llm.model: {model!r} is no folder, nor a hub name such as "
            f"zai-org/GLM-4-9B-0414, nor {embedded_llm.EMBEDDED_MODEL!r}"
        )
    return model, model


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
    assert settings.root is not None
    try:
        photos = read_folder(Path(settings.root), categories)
        for file in photos.files:
            check_image(file)
    except (ValueError, OSError) as error:
        raise InputError(f"evaluation.root: {error}") from None
    return plan_stage(
        cache,
        "images",
        ("prompt_tuning.datasets",),
        files=[[str(file), file_digest(file)] for file in photos.files],
        labels=photos.labels.tolist(),
    )
