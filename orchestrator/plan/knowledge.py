"""The plan of the knowledge stage: the language model, its engines and the stage's key."""

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
from orchestrator.errors import InputError, as_input_error
from orchestrator.paths import check_folder
from orchestrator.stages.knowledge_summary import CAPTIONS, FACTS_FILE
from prompt_tuning.captions import CaptionSettings, PackedCaptions, given_captions, read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.code_digest import code_digest
from prompt_tuning.install_hints import install_set
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.knowledge.label_check import dropped_labels
from prompt_tuning.knowledge.label_findings import foreign_labels
from prompt_tuning.knowledge.templates import Template
from prompt_tuning.storage import file_digest, folder_digest
from workers.knowledge import embedded_llm
from workers.knowledge.embedded_llm import EMBEDDED_MODEL
from workers.knowledge.engine import engine_versions
from workers.knowledge.engine_dtype import native_dtype
from workers.knowledge.llm_settings import GPU_DEFAULT, chosen_dtype
from workers.knowledge.pool import cluster_dtype
from workers.knowledge.server import server_model
from workers.placement import NodeSettings, Placement
from workers.stage import Stage, plan_stage

_log = logging.getLogger(__name__)

# The lexicons of these packages decide which words name a category.
_PACKAGES = ("HanTa", "lemminflect")

# Fields of `knowledge.llm` that change no answer of an engine.
_NOT_IN_ANSWERS = {
    *("source", "url", "key_variable", "concurrency", "model", "engines", "cpus_per_engine"),
    *("gpu_memory_share", "timeout_minutes", *NodeSettings.model_fields),
}
# Environment variables that reach the engines and can change their numerical results.
_ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_BATCH_INVARIANT")


@dataclass(frozen=True)
class KnowledgePlan:
    """All that is decided about the captions of a run before it starts.

    `llm_identity`: all that an answer depends on besides its question; it is part of every shard's
    key, and empty if the config asks no questions. `llm_path`: the folder or hub name of the
    engines' model.
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
        return self.stage.folder / CAPTIONS

    @property
    def facts_file(self) -> Path:
        return self.stage.folder / FACTS_FILE

    @cached_property
    def given(self) -> PackedCaptions:
        """The captions from files and templates, matched once (100,000 take a minute).

        Raises InputError with the file and row.
        """
        try:
            return PackedCaptions(given_captions(self.config.captions, self.categories))
        except ValueError as error:
            raise InputError(f"captions.files: {error}") from None

    def coverage(self) -> CaptionCoverage:
        """Which labels have captions; before the stage has run, only given captions count."""
        done = self.stage.done()
        captions = read_captions(self.captions_file, self.categories) if done else self.given
        return CaptionCoverage.of(captions, self.categories, self.config.captions.held_out)


def plan_knowledge(config: RunConfig, resources: Resources) -> KnowledgePlan:
    """Check all that the knowledge stage needs, and key it. Raises InputError."""
    asks = config.knowledge.questions.asks_something
    by_engines = asks and config.knowledge.llm.source == "vllm"
    if by_engines:
        _check_vllm()
        pool = resources.chosen_by(config.knowledge.llm, "knowledge.llm")
        if config.knowledge.llm.model == "auto":
            config = _with_llm(config, model=GPU_DEFAULT if pool.gpus else EMBEDDED_MODEL)
    categories = load_categories(config)
    templates = load_templates(config)
    if asks:
        _check_labels(categories)
    cache = check_folder(config.paths.cache, "paths.cache")
    runs = check_folder(config.paths.runs, "paths.runs")
    engines = place_engines(config.knowledge.llm, resources) if asks else Placement(0, 0, 0)
    llm_path: Path | str = ""
    llm_identity: dict[str, object] = {}
    if by_engines:
        if config.knowledge.llm.dtype == "auto":
            config = _with_llm(config, dtype=_resolve_dtype(config, engines))
        llm_path, llm_content = _llm(config, cache)
        llm_identity = _vllm_identity(config, engines, pool, llm_content)
    elif asks:
        llm_identity = _openai_identity(config)
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
        len(plan.given)  # raises for a bad row before anything starts
        if asks and config.knowledge.llm.source == "server":
            with as_input_error():
                server_model(config.knowledge.llm)  # raises without a key
    return plan


def _vllm_identity(
    config: RunConfig, engines: Placement, pool: Resources, content: str
) -> dict[str, object]:
    """What answers of this run's engines depend on. `content`: identifies the model's weights."""
    return {
        "model": content,
        "engine": config.knowledge.llm.model_dump(exclude=_NOT_IN_ANSWERS),
        "sampling": config.knowledge.sampling.model_dump(),
        "cpus": engines.cpus,
        "gpus": engines.gpus,
        "accelerators": sorted({node.accelerator for node in pool.nodes if node.gpus}),
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "versions": engine_versions(),
        "source": code_digest("workers.knowledge.engine"),
    }


def _openai_identity(config: RunConfig) -> dict[str, object]:
    """What answers of a server or a file depend on: neither the URL nor who sends the questions."""
    llm = config.knowledge.llm
    return {
        "api": "openai",
        "model": llm.model,
        "completes": llm.adapter == "base",
        "sampling": config.knowledge.sampling.model_dump(),
        "source": code_digest("workers.knowledge.openai_format"),
    }


def describe_engines(plan: KnowledgePlan) -> str:
    """A line about who answers: the number of engines and the resources of each, or the server."""
    if not plan.llm_identity:
        return "engines: none, because no language model is asked"
    llm = plan.config.knowledge.llm
    if llm.source == "server":
        return f"server: {llm.model} at {llm.url}, {llm.concurrency} questions at once"
    if llm.source == "file":
        return f"answers: from a file (datafree knowledge --export, --import), by {llm.model}"
    engines = plan.engines
    return (
        f"engines: {engines.count}, each {engines.cpus} CPUs and {engines.gpus} GPUs, "
        f"in {plan.config.knowledge.llm.dtype}"
    )


def check_captions(plan: KnowledgePlan) -> None:
    """Check that the captions of the knowledge stage suffice for tuning.

    Raises:
        InputError: as `check_coverage` does.
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
    """Check that the captions suffice for tuning.

    Raises InputError if not, or for labels without a caption unless the settings allow these.
    """
    try:
        captions.check(settings.allow_missing, "captions.allow_missing: true")
    except ValueError as error:
        raise InputError(f"captions: {error}") from None


def _check_vllm() -> None:
    # A cluster's nodes may have vLLM even if this machine does not.
    if importlib.util.find_spec("vllm") is None and not os.environ.get("RAY_ADDRESS"):
        raise InputError(
            "knowledge.questions: asking a language model needs vLLM, which is not installed: "
            f"{install_set('gpu' if visible_gpus() else 'cpu')}; captions.files with per_category "
            "and relationships at 0 need none"
        )


def _with_llm(config: RunConfig, **update: object) -> RunConfig:
    llm = config.knowledge.llm.model_copy(update=update)
    knowledge = config.knowledge.model_copy(update={"llm": llm})
    return config.model_copy(update={"knowledge": knowledge})


def _resolve_dtype(config: RunConfig, engines: Placement) -> str:
    """The dtype that `auto` means on the nodes where engines may run."""
    on_gpu, in_cluster = engines.gpus > 0, bool(os.environ.get("RAY_ADDRESS"))
    native = cluster_dtype(engines, on_gpu) if in_cluster else native_dtype(on_gpu)
    return chosen_dtype(config.knowledge.llm, native)


@cache
def _check_labels(categories: CategoryList) -> None:
    """Raise for a list in another language, and for a label that the filters never keep; warn once
    of labels that they rarely keep."""
    if foreign := foreign_labels(categories):
        raise InputError(
            f"categories: {len(foreign)} of {len(categories)} labels are not English "
            f"({', '.join(foreign[:3])}, …); questions, filters and the text tower read English: "
            "write English names, or give "
            "each an English synonym"
        )
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
    try:
        return [file_digest(Path(file)) for file in files]
    except OSError as error:
        raise InputError(f"captions.files: {error.filename}: {error.strerror}") from None


def _llm(config: RunConfig, cache: Path) -> tuple[Path | str, str]:
    """The language model's folder or hub name, and the identity of its content for keys."""
    model = config.knowledge.llm.model
    if model == EMBEDDED_MODEL:
        try:
            content = embedded_llm.content_digest()
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        return embedded_llm.checkpoint_folder(cache), content
    if Path(model).is_dir():
        if not Path(model, "config.json").is_file():
            raise InputError(f"knowledge.llm.model: {model} is not a checkpoint (no config.json)")
        return Path(model), folder_digest(Path(model))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(
            f"knowledge.llm.model: {model!r} must be a folder, a hub name such as "
            f"zai-org/GLM-4-9B-0414, or {EMBEDDED_MODEL!r}"
        )
    return model, model
