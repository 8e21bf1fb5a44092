"""`sweep`: plan all points, run the stages that they share, tune each, write the results."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from orchestrator.cluster.check import check_cluster
from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources, wait_for_nodes
from orchestrator.config.label_list import show_labels
from orchestrator.config.load import build_config
from orchestrator.pages.html import signed_between
from orchestrator.run_lock import only_driver
from orchestrator.runs.cache import note_planned
from orchestrator.runs.pipeline import (
    fetch_scenes,
    fetch_vlm,
    run_stages,
    stamps_here,
    warn_of_captions,
)
from orchestrator.sweep.plan import SweepPlan, plan_sweep
from orchestrator.sweep.space import describe
from workers.stage import run_stage

if TYPE_CHECKING:
    from orchestrator.sweep.results import Compared, PointResult

_POINTS_SHOWN = 10


def sweep(raw: dict[str, Any], path: Path, console: Console, dry_run: bool = False) -> None:
    """Run the sweep of a config file to its page, or print its plan.

    `raw`: the plain values of the file `path`.

    Raises:
        InputError: for mistakes in the config or too few captions, before any point is tuned.
        RuntimeError: if no point could be tuned.
    """
    began = time.monotonic()
    config = build_config({name: raw[name] for name in raw if name != "sweep"}, path)
    stamps = stamps_here(config)
    resources = find_resources()
    if not dry_run:
        resources = wait_for_nodes(resources, config)
    plan = plan_sweep(raw, path, resources, stamps)
    if dry_run:
        _print_plan(plan, console)
        return
    check_cluster(config.paths)
    with only_driver(plan.run_folder):
        note_planned(plan.run_folder, (s for point in plan.points for s in point.plan.stages))
        show_labels(plan.default.plan.categories, console)
        if not stamps and (stamps := fetch_scenes(plan.default.plan, console)):
            plan = plan_sweep(raw, path, plan.resources, stamps)
        for stage, run_plan in plan.shared().items():
            if stage == run_plan.captions:
                fetch_vlm(run_plan, console)
        try:
            shared = run_stages(plan.shared(), stamps, console)
            ran = {stage for stage, was_missing in shared.items() if was_missing}
            # Imported late: these load Ray Tune and torch.
            from orchestrator.runs.stage_work import stage_work
            from orchestrator.sweep.outputs import write_sweep
            from orchestrator.sweep.records import TrialRecords
            from orchestrator.sweep.results import best_point, point_results
            from orchestrator.sweep.rounds import run_rounds

            folder = plan.run_folder / "trials"
            records = TrialRecords(folder, plan.measured_on, plan.settings.asha)
            ran |= run_rounds(plan, records, console)
            results = point_results(plan, records)
            best = best_point(results)
            for result in (results[0], best):
                run_plan = plan.points[result.number].plan
                stage = run_plan.evaluation
                if result.finished and run_stage(
                    stage, stage_work(run_plan, stamps, console)[stage]
                ):
                    ran.add(stage)
        finally:
            disconnect()
        compared = write_sweep(plan, results, best, ran, time.monotonic() - began)
    _print_summary(plan, results, best, compared, console)


def _print_plan(plan: SweepPlan, console: Console) -> None:
    show_labels(plan.default.plan.categories, console)
    table = Table(
        "stage", "key", "state", title=f"stages that all points of {plan.run_folder.name} share"
    )
    for stage in plan.shared():
        table.add_row(stage.name, stage.key, "done" if stage.done() else "to do")
    console.print(table)
    first, config = plan.seeds[0], plan.default.plan.config
    done = sum(point.plan.tuning[first].done() for point in plan.points)
    share = plan.default.plan.share
    more = f" and {plan.settings.samples} from Optuna" if plan.settings.search == "optuna" else ""
    console.print(
        f"points: {len(plan.points)}{more}, {done} with their first seed done; "
        f"seeds per point: {len(plan.seeds)}\n"
        f"trials at once: {plan.slots}, with {config.tuning.workers} workers each of "
        f"{share.cpus:g} CPUs and {share.gpus:g} GPUs"
    )


def _print_summary(
    plan: SweepPlan,
    results: Sequence[PointResult],
    best: PointResult,
    compared: Compared | None,
    console: Console,
) -> None:
    # Imported late: these load Ray Tune and torch.
    from orchestrator.stages.evaluation import read_metrics
    from orchestrator.sweep.results import ranked_by

    finished = [result for result in results if result.finished]
    ranked = sorted(finished, key=lambda result: -statistics.mean(result.objective))
    table = Table("rank", "point", "mAP", title=f"by {ranked_by(plan.on_images)}")
    for rank, result in enumerate(ranked[:_POINTS_SHOWN], start=1):
        mark = " (default)" if result is results[0] else ""
        figure = f"{statistics.mean(result.objective):.2f}"
        table.add_row(str(rank), describe(result.fields) + mark, figure)
    console.print(table)
    ended = Counter(result.status for result in results)
    console.print("points: " + ", ".join(f"{count} {status}" for status, count in ended.items()))
    if compared and best is not results[0]:
        mean, *ends = compared.difference
        console.print(
            f"best: {describe(best.fields)}: {compared.best:.1f} mAP on {compared.where}, default "
            f"{compared.default:.1f}; difference {mean:+.1f} ({signed_between(ends)})",
            markup=False,
            highlight=False,
        )
    elif compared:
        console.print(f"Nothing is better than the default: {compared.default:.1f} mAP.")
    warn_of_captions(read_metrics(plan.points[best.number].plan), console)
    for name in ("report.html", "best", "results.parquet"):
        console.print(f"{name:<15} {plan.run_folder / name}", soft_wrap=True, highlight=False)
