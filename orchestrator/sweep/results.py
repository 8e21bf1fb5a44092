"""What a sweep leaves: the table of its trials, the best artifact with its run, and the page."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from orchestrator.config.models import set_field
from orchestrator.pages.metrics_summary import evaluated_on
from orchestrator.pages.sweep_page import render_sweep
from orchestrator.plan.run import Plan
from orchestrator.runs.results import write_results
from orchestrator.stages.evaluation import (
    GEOMETRY,
    SELECTION,
    image_features_at,
    read_metrics,
    read_selection,
    reported_rows,
)
from orchestrator.stages.images import read_images
from orchestrator.stages.tuning import RAY_STORAGE
from orchestrator.sweep.plan import Point, SweepPlan
from orchestrator.sweep.records import TrialRecords
from orchestrator.sweep.space import split_names
from orchestrator.sweep.swept_points import Compared, SweepData, SweptPoint
from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.baselines import RESAMPLES, method_scores
from prompt_tuning.evaluation.bootstrap import paired_difference
from prompt_tuning.evaluation.selection import images_at
from prompt_tuning.storage import canonical_json, remove_abandoned, write_atomic
from prompt_tuning.tagging.artifact import Artifact
from workers.stage import Stage
from workers.tuning.job import read_classes
from workers.tuning.trials import Entry, Outcome, curve, objective

BEST = "best"
BEST_RUN = "best-run"


@dataclass(frozen=True)
class PointResult:
    """A point and how those of its seeds ended that were tuned."""

    point: Point
    outcomes: dict[int, Outcome]
    on_images: bool

    @property
    def status(self) -> str:
        """Finished when all seeds are; else what became of the first that is not."""
        unfinished = [o.status for o in self.outcomes.values() if o.status != "finished"]
        if len(self.outcomes) == len(self.point.plan.tuning) and not unfinished:
            return "finished"
        return unfinished[0] if unfinished else "stopped"

    @property
    def reason(self) -> str:
        return next((o.reason for o in self.outcomes.values() if o.reason), "")

    @property
    def finished(self) -> list[list[Entry]]:
        """The entries of each seed that is finished."""
        return [o.entries for o in self.outcomes.values() if o.status == "finished"]

    @property
    def objective(self) -> list[float]:
        return [objective(entries, self.on_images) for entries in self.finished]


def point_results(plan: SweepPlan, records: TrialRecords) -> list[PointResult]:
    """How all points ended, in their order."""
    results = []
    for point in plan.points:
        outcomes = {
            seed: outcome
            for seed, stage in point.plan.tuning.items()
            if (outcome := records.find(stage) or records.failure(stage))
        }
        results.append(PointResult(point, outcomes, point.plan.labelled.select))
    return results


def best_point(results: Sequence[PointResult]) -> PointResult:
    """The finished point with the highest mean objective; of equals the first.

    Raises:
        RuntimeError: with the first reason, when none has finished.
    """
    finished = [result for result in results if result.status == "finished"]
    if not finished:
        reason = next((result.reason for result in results if result.reason), "all were stopped")
        raise RuntimeError(f"sweep: no point was tuned with all its seeds; the first: {reason}")
    return max(finished, key=lambda result: statistics.mean(result.objective))


def tuning_seconds(entries: Sequence[Entry]) -> float:
    """How long the epochs took, without the time in which nobody tuned; 0 where it is not known."""
    ends = [entry["at"] for entry in entries if "at" in entry]
    starts = [entry["started"] for entry in entries if "at" in entry]
    return sum(
        end - max(start, before)
        for start, before, end in zip(starts, [0.0, *ends[:-1]], ends, strict=True)
    )


def compare(plan: SweepPlan, best: Point) -> Compared:
    """The best point against the default, on the images that had no say in which is best.

    Both need their evaluation stages.
    """
    default, images = plan.default.plan, read_images(plan.default.plan.labelled)
    _, selection = read_selection(default.evaluation.folder / SELECTION)
    rows = reported_rows(default.labelled, images, selection)
    reported, sides = images_at(images, rows), (_scores(best.plan, rows), _scores(default, rows))
    difference = paired_difference(*sides, reported.labels, RESAMPLES, 0, reported.ignored)
    of_best, of_default = read_metrics(best.plan), read_metrics(default)
    return Compared(
        best=of_best["map"]["tuned"]["fused"],
        default=of_default["map"]["tuned"]["fused"],
        difference=(100 * difference.mean, 100 * difference.low, 100 * difference.high),
        best_ci=of_best["ci"].get("tuned"),
        default_ci=of_default["ci"].get("tuned"),
        where=evaluated_on(of_best),
    )


def _scores(plan: Plan, rows: np.ndarray) -> list[np.ndarray]:
    """Of each seed the fused scores `(rows, classes)` of the images at these places."""
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

    `ran`: the stages that ran now, for `wall_seconds` in all. What nobody goes on from is removed.

    Returns:
        the comparison of the best with the default; None where there are no images to compare them
        on, or the default could not be tuned.
    """
    folder = plan.run_folder
    best_run = replace(best.point.plan, run_folder=folder / BEST_RUN)
    write_results(best_run, {stage: stage in ran for stage in best_run.stages})
    Artifact.load(best_run.run_folder / "artifact").save(folder / BEST)
    _write_table(results, folder / "results.parquet")
    comparable = plan.default.plan.labelled.images and results[0].status == "finished"
    compared = compare(plan, best.point) if comparable else None
    page = render_sweep(_report_data(plan, results, best, compared, ran, wall_seconds))
    write_atomic(folder / "report.html", page.encode())
    for point in plan.points:
        for stage in point.plan.tuning.values():
            remove_abandoned(stage.folder)
            if stage.done():
                for left in (folder / RAY_STORAGE / plan.measured_on).glob(f"{stage.key}*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return compared


def _write_table(results: Sequence[PointResult], file: Path) -> None:
    """A row a trial: point, seed, a column a swept field, status, figures, seconds, reason."""
    rows = [
        {
            "point": result.point.number,
            "seed": seed,
            **{key: _plain(value) for key, value in result.point.fields.items()},
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
        # A column has one type: 1 and 0.5 are numbers, 1 and "auto" are texts.
        if len(kinds) > 1:
            to = float if kinds <= {int, float} else str
            values = [None if value is None else to(value) for value in values]
        columns[name] = values
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomic(file, sink.getvalue().to_pybytes())


def _plain(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, list | dict) else value


def _report_data(
    plan: SweepPlan,
    results: Sequence[PointResult],
    best: PointResult,
    compared: Compared | None,
    ran: set[Stage],
    wall_seconds: float,
) -> SweepData:
    config, settings = plan.default.plan.config, plan.settings
    outcomes = [outcome for result in results for outcome in result.outcomes.values()]
    on_images = best.on_images
    halving = settings.asha
    told_settings = settings.model_dump(mode="json", exclude_none=True)
    return SweepData(
        name=config.name,
        axes=list(settings.space),
        objective=(
            "mAP on the selection half of the images" if on_images else "mAP on held-out captions"
        ),
        points=[
            SweptPoint(
                number=result.point.number,
                fields=result.point.fields,
                status=result.status,
                reason=result.reason,
                epochs=max((len(o.entries) for o in result.outcomes.values()), default=0),
                objective=result.objective,
                text_map=[objective(entries, False) for entries in result.finished],
                selecting_map=result.objective if on_images else [],
                curves=[curve(o.entries, on_images) for o in result.outcomes.values()],
                seconds=sum(tuning_seconds(o.entries) for o in result.outcomes.values()),
            )
            for result in results
        ],
        best=best.point.number,
        compared=compared,
        epochs=max(result.point.plan.config.tuning.epochs for result in results),
        asha=(
            f"after {halving.grace} epochs, and each {halving.reduction:g} times as many, a point "
            f"goes on only if it is in the best 1/{halving.reduction:g} of those so far"
            if halving
            else ""
        ),
        seconds={
            "tuning": sum(tuning_seconds(outcome.entries) for outcome in outcomes),
            "tuning_now": sum(
                tuning_seconds(outcome.entries)
                for result in results
                for seed, outcome in result.outcomes.items()
                if result.point.plan.tuning[seed] in ran
            ),
            "wall": wall_seconds,
            "trials": len(outcomes),
            "slots": plan.slots,
        },
        config_yaml=_as_yaml({**plan.raw, "sweep": told_settings}),
        best_yaml=_as_config(best.point),
        embedded=config.vlm.kind == "embedded",
        vlm=f"{config.vlm.kind} {config.vlm.model}",
    )


def _as_config(point: Point) -> str:
    """The swept fields of a point as YAML to put into a config."""
    nested: dict[str, Any] = {}
    for key, value in point.fields.items():
        for name in split_names(key):
            set_field(nested, name, value, name)
    return _as_yaml(nested)


def _as_yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
