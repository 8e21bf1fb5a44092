"""Write a sweep's results: the table of its trials, the best artifact and run, and the page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from orchestrator.config.load import set_field
from orchestrator.pages.metrics_summary import evaluated_on
from orchestrator.pages.sweep_page import SweepData, render_sweep
from orchestrator.plan.run import Plan
from orchestrator.runs.results import write_results
from orchestrator.stages.evaluation import (
    image_features_at,
    read_metrics,
    rows_to_report,
)
from orchestrator.stages.images import read_images
from orchestrator.stages.tuning import RAY_STORAGE
from orchestrator.sweep.plan import Point, SweepPlan
from orchestrator.sweep.results import Compared, PointResult, ranked_by, tuning_seconds
from orchestrator.sweep.settings import split_names
from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.compare import RESAMPLES
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.selection import images_at
from prompt_tuning.storage import canonical_json, remove_abandoned, write_atomic
from prompt_tuning.tagging.artifact import Artifact
from workers.evaluation_files import GEOMETRY, SELECTION, read_selection
from workers.stage import Stage
from workers.tuning.job import read_classes
from workers.tuning.trials import objective


def compare(plan: SweepPlan, best: Point) -> Compared:
    """Compare the best point with the default on the images that did not rank them.

    The evaluation stages of both must be done.
    """
    default, images = plan.default.plan, read_images(plan.default.plan.labelled)
    _, selection = read_selection(default.evaluation.folder / SELECTION)
    rows = rows_to_report(images, selection)
    reported, sides = images_at(images, rows), (_scores(best.plan, rows), _scores(default, rows))
    difference = paired_difference(*sides, reported.labels, RESAMPLES, 0, reported.ignored)
    best_metrics, default_metrics = read_metrics(best.plan), read_metrics(default)
    return Compared(
        best=best_metrics["map"]["tuned"]["fused"],
        default=default_metrics["map"]["tuned"]["fused"],
        difference=(100 * difference.mean, 100 * difference.low, 100 * difference.high),
        best_ci=best_metrics["ci"].get("tuned"),
        default_ci=default_metrics["ci"].get("tuned"),
        where=evaluated_on(best_metrics),
    )


def _scores(plan: Plan, rows: np.ndarray) -> list[np.ndarray]:
    """The fused scores of the images at `rows`, `(rows, classes)` for each seed."""
    items = image_features_at(plan.labelled, rows)
    geometry = Geometry.model_validate_json((plan.evaluation.folder / GEOMETRY).read_bytes())
    return [
        method_scores(items, read_classes(stage.folder), geometry, plan.config.scoring.fusion)[
            "fused"
        ]
        for stage in plan.tuning.values()
    ]


def write_sweep(
    plan: SweepPlan,
    results: Sequence[PointResult],
    best: PointResult,
    ran: set[Stage],
    wall_seconds: float,
) -> Compared | None:
    """Write `best/`, `best-run/`, `results.parquet` and `report.html` into the sweep's folder.

    Also remove the checkpoints of finished trials.

    Args:
        ran: the stages that this command ran.
        wall_seconds: how long the command took.

    Returns:
        The comparison of the best point with the default; None without images to compare them on,
        or if the default could not be tuned.
    """
    folder, best_point = plan.run_folder, plan.points[best.number]
    best_run = replace(best_point.plan, run_folder=folder / "best-run")
    write_results(best_run, {stage: stage in ran for stage in best_run.stages})
    Artifact.load(best_run.run_folder / "artifact").save(folder / "best")
    _write_table(results, folder / "results.parquet")
    comparable = plan.default.plan.labelled.images and results[0].finished
    compared = compare(plan, best_point) if comparable else None
    page = render_sweep(_page_data(plan, results, best, compared, ran, wall_seconds))
    write_atomic(folder / "report.html", page.encode())
    for point in plan.points:
        for stage in point.plan.tuning.values():
            remove_abandoned(stage.folder)
            if stage.done():
                for left in (folder / RAY_STORAGE / plan.measured_on).glob(f"{stage.key}*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return compared


def _write_table(results: Sequence[PointResult], file: Path) -> None:
    """One row for each trial, with a column for each swept field."""
    rows = [
        {
            "point": result.number,
            "seed": seed,
            **{
                key: canonical_json(value) if isinstance(value, list | dict) else value
                for key, value in result.fields.items()
            },
            "status": outcome.status,
            "epochs": len(outcome.entries),
            "objective": (
                objective(outcome.entries, result.on_images)
                if outcome.status == "finished"
                else None
            ),
            "text_map": objective(outcome.entries, False) if outcome.entries else None,
            "selecting_map": outcome.entries[-1].get("selecting_map") if outcome.entries else None,
            "tuning_seconds": tuning_seconds(outcome.entries),
            "reason": outcome.reason,
        }
        for result in results
        for seed, outcome in result.outcomes.items()
    ]
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        # A column has one type: 1 and 0.5 become numbers, 1 and "auto" become text.
        if len(kinds) > 1:
            to = float if kinds <= {int, float} else str
            values = [None if value is None else to(value) for value in values]
        columns[name] = values
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomic(file, sink.getvalue().to_pybytes())


def _page_data(
    plan: SweepPlan,
    results: Sequence[PointResult],
    best: PointResult,
    compared: Compared | None,
    ran: set[Stage],
    wall_seconds: float,
) -> SweepData:
    config, asha = plan.default.plan.config, plan.settings.asha
    return SweepData(
        name=config.name,
        axes=list(plan.settings.space),
        objective=ranked_by(plan.on_images),
        points=list(results),
        best=best.number,
        compared=compared,
        epochs=max(point.plan.config.tuning.epochs for point in plan.points),
        asha=(
            f"after {asha.grace} epochs, and each {asha.reduction:g} times as many, a point "
            f"continues only if it is in the best 1/{asha.reduction:g} of those so far"
            if asha
            else ""
        ),
        seconds={
            "tuning": sum(result.seconds for result in results),
            "tuning_now": sum(
                tuning_seconds(outcome.entries)
                for result in results
                for seed, outcome in result.outcomes.items()
                if plan.points[result.number].plan.tuning[seed] in ran
            ),
            "wall": wall_seconds,
            "trials": sum(len(result.outcomes) for result in results),
            "slots": plan.slots,
        },
        config_yaml=_as_yaml(
            {**plan.raw, "sweep": plan.settings.model_dump(mode="json", exclude_none=True)}
        ),
        best_yaml=_as_config(plan.points[best.number]),
        embedded=config.vlm.kind == "embedded",
        vlm=f"{config.vlm.kind} {config.vlm.model}",
    )


def _as_config(point: Point) -> str:
    """The swept fields of a point as YAML to paste into a config."""
    nested: dict[str, Any] = {}
    for key, value in point.fields.items():
        for name in split_names(key):
            set_field(nested, name, value, name)
    return _as_yaml(nested)


def _as_yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
