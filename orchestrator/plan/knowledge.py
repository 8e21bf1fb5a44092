"""The plan of the knowledge stage: which model answers which questions, and under which keys."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

from orchestrator.cluster.placement import place_engines
from orchestrator.cluster.resources import Resources, visible_gpus
from orchestrator.config.inputs import load_categories, load_templates
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.paths import check_folder
from orchestrator.stages.knowledge_summary import CAPTIONS, FACTS_FILE
from prompt_tuning.captions import Caption, CaptionSettings, given_captions, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.code_digest import code_digest
from prompt_tuning.install_hints import install_set
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.knowledge.label_check import dropped_labels
from prompt_tuning.knowledge.templates import Template
from prompt_tuning.storage import file_digest, folder_digest
from workers.knowledge import embedded_llm
from workers.knowledge.engine import GPU_DEFAULT, chosen_dtype, engine_versions
from workers.knowledge.engine_dtype import native_dtype
from workers.knowledge.pool import cluster_dtype
from workers.placement import Placement
from workers.stage import Stage, plan_stage

_log = logging.getLogger(__name__)

# Their lexicons decide which words name a category.
_PACKAGES = ("HanTa", "lemminflect")

# What of a person's environment reaches the engines and can change the sums of their numbers.
_ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_BATCH_INVARIANT")


@dataclass(frozen=True)
class KnowledgePlan:
    """What has been decided about the text side of a run before it starts.

    `llm_identity`: all that forms an answer beside its question; part of every shard's key, and
    empty, as `llm_path` is, where nothing is asked: then no model need be here.
    """

    config: RunConfig
    resources: Resources
    categories: CategoryList
    templates: dict[str, Template]
    cache: Path
    run_folder: Path
    engines: Placement
    llm_identity: dict[str, object]
    llm_path: Path | str
    stage: Stage

    @property
    def captions_file(self) -> Path:
        """Where the stage writes the captions."""
        return self.stage.folder / CAPTIONS

    @property
    def facts_file(self) -> Path:
        """Where the stage writes the category facts."""
        return self.stage.folder / FACTS_FILE

    @cached_property
    def given(self) -> list[Caption]:
        """The captions that no language model writes, matched once: 100,000 take a minute.

        Raises:
            InputError: naming file and row.
        """
        try:
            return list(given_captions(self.config.captions, self.categories))
        except OSError as error:
            raise _unreadable(error) from None
        except ValueError as error:
            raise InputError(f"captions.files: {error}") from None

    def coverage(self) -> CaptionCoverage:
        """Which labels have captions, as far as is known without asking a language model."""
        if self.stage.done():
            captions = read_captions(self.captions_file, self.categories)
        else:
            captions = self.given
        return CaptionCoverage.of(captions, self.categories, self.config.captions.held_out)


def plan_knowledge(config: RunConfig, resources: Resources) -> KnowledgePlan:
    """Check what the knowledge stage needs, and key it.

    Raises:
        InputError: for what a person has to change.
    """
    asks = config.knowledge.questions.asks_something
    if asks:
        _check_vllm()
        on = resources.in_pool(config.knowledge.llm.pool, "knowledge.llm.pool")
        config = _with_model(config, on)
    categories = load_categories(config)
    templates = load_templates(config)
    if asks:
        _check_labels(categories)
    engines = place_engines(config.knowledge.llm, resources) if asks else Placement(0, 0, 0)
    cache = check_folder(config.paths.cache, "paths.cache")
    runs = check_folder(config.paths.runs, "paths.runs")
    llm_path: Path | str = ""
    llm_identity: dict[str, object] = {}
    if asks:
        config = _with_dtype(config, engines)
        llm_path, llm_content = _llm(config, cache)
        llm_identity = {
            "model": llm_content,
            "engine": config.knowledge.llm.model_dump(
                exclude={"model", "engines", "cpus_per_engine", "pool", "timeout_minutes"}
            ),
            "sampling": config.knowledge.sampling.model_dump(),
            "cpus": engines.cpus,
            "gpus": engines.gpus,
            "accelerators": sorted({node.accelerator for node in on.nodes if node.gpus}),
            "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
            "versions": engine_versions(),
            "source": code_digest("workers.knowledge.engine"),
        }
    stage = plan_stage(
        cache,
        "knowledge",
        f"orchestrator.stages.{'knowledge' if asks else 'given_captions'}",
        llm=llm_identity,
        templates={name: template.model_dump() for name, template in templates.items()},
        categories=categories.model_dump(mode="json"),
        questions=config.knowledge.questions.model_dump(exclude={"templates"}),
        captions=config.captions.model_dump(exclude={"files", "held_out", "allow_missing"}),
        files=_digests(config.captions.files),
        packages={package: version(package) for package in _PACKAGES},
    )
    plan = KnowledgePlan(
        config=config,
        resources=resources,
        categories=categories,
        templates=templates,
        cache=cache,
        run_folder=runs / config.name,
        engines=engines,
        llm_identity=llm_identity,
        llm_path=llm_path,
        stage=stage,
    )
    if not stage.done():
        len(plan.given)  # refuses a bad row before anything starts
    return plan


def describe_engines(plan: KnowledgePlan) -> str:
    """How many engines a run has and on what, for a person."""
    if not plan.llm_identity:
        return "engines: none, for no language model is asked"
    engines = plan.engines
    return (
        f"engines: {engines.count}, each {engines.cpus} CPUs and {engines.gpus} GPUs, "
        f"in {plan.config.knowledge.llm.dtype}"
    )


def check_captions(plan: KnowledgePlan) -> None:
    """Refuse captions that the knowledge stage has written and that cannot be tuned on.

    Raises:
        InputError: naming the labels without any (see `check_coverage`).
        RuntimeError: if there is no caption at all.
    """
    coverage = plan.coverage()
    if not coverage.training + coverage.held_out:
        raise RuntimeError(
            "knowledge: no caption survived the filters; see answers.parquet in "
            f"{plan.stage.folder}"
        )
    check_coverage(coverage, plan.config.captions)


def check_coverage(captions: CaptionCoverage, settings: CaptionSettings) -> None:
    """Refuse captions that cannot be tuned on, and labels without any unless these are allowed.

    Raises:
        InputError: in one line, with what would help.
    """
    try:
        captions.check(settings.allow_missing, "captions.allow_missing: true")
    except ValueError as error:
        raise InputError(f"captions: {error}") from None


def _check_vllm() -> None:
    """Refuse to ask a language model where vLLM is not here; a cluster's nodes may have it."""
    if importlib.util.find_spec("vllm") is None and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            "knowledge.questions: asking a language model needs vLLM, which is not installed: "
            f"{install_set('gpu' if visible_gpus() else 'cpu')}; captions.files with per_category "
            "and relationships at 0 need none"
        )


def _with_model(config: RunConfig, resources: Resources) -> RunConfig:
    """The config with the model that `auto` means here."""
    llm = config.knowledge.llm
    if llm.model != "auto":
        return config
    model = GPU_DEFAULT if resources.gpus else embedded_llm.EMBEDDED_MODEL
    chosen = config.knowledge.model_copy(update={"llm": llm.model_copy(update={"model": model})})
    return config.model_copy(update={"knowledge": chosen})


def _with_dtype(config: RunConfig, engines: Placement) -> RunConfig:
    """The config with the dtype that `auto` means on the nodes that engines may be on."""
    llm = config.knowledge.llm
    if llm.dtype != "auto":
        return config
    on_gpu, in_cluster = engines.gpus > 0, bool(os.environ.get("RAY_ADDRESS"))
    native = cluster_dtype(engines.resources, on_gpu) if in_cluster else native_dtype(on_gpu)
    chosen = llm.model_copy(update={"dtype": chosen_dtype(llm, native)})
    knowledge = config.knowledge.model_copy(update={"llm": chosen})
    return config.model_copy(update={"knowledge": knowledge})


@cache
def _check_labels(categories: CategoryList) -> None:
    """Refuse labels that no sentence can get, and warn, once, of those that few can."""
    for label in dropped_labels(categories):
        if label.never:
            raise InputError(
                f"categories: {label.name!r}: every sentence about it would be dropped "
                f"({label.reason}); rename it, or give it a synonym in plain English words"
            )
        _log.warning(
            "categories: %r: most sentences about it will be dropped (%s); a synonym in plain "
            "English words helps",
            label.name,
            label.reason,
        )


def _digests(files: tuple[str, ...]) -> list[str]:
    """Of the content of a person's files of captions."""
    try:
        return [file_digest(Path(file)) for file in files]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> InputError:
    return InputError(f"captions.files: {error.filename}: {error.strerror}")


def _llm(config: RunConfig, cache: Path) -> tuple[Path | str, str]:
    """Where the language model is, and what stands for its content in keys."""
    model = config.knowledge.llm.model
    if model == embedded_llm.EMBEDDED_MODEL:
        try:
            content = embedded_llm.content_digest()
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        return embedded_llm.checkpoint_folder(cache), content
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
