"""`run`: plan, run the stages without a result, summarise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.cluster.check import check_cluster
from orchestrator.cluster.connect import disconnect
from orchestrator.cluster.resources import find_resources, wait_for_nodes
from orchestrator.config.label_list import show_labels
from orchestrator.config.models import RunConfig
from orchestrator.console import status
from orchestrator.errors import InputError
from orchestrator.pages.metrics_summary import caption_notes, evaluated_on
from orchestrator.paths import check_folder
from orchestrator.plan.knowledge import check_captions, describe_engines
from orchestrator.plan.run import Plan, make_plan
from orchestrator.run_lock import only_driver
from orchestrator.runs.cache import note_planned
from orchestrator.runs.knowledge_job import warn_of_unanswered
from orchestrator.runs.label_report import warn_of_labels
from orchestrator.stages.knowledge_summary import read_summary
from prompt_tuning.datasets.stamps import StampsUnavailable, fetch_stamps, stamps_source
from workers.stage import Stage, run_stage


def run(config: RunConfig, console: Console, dry_run: bool = False) -> None:
    """Run a config to its report, or with `dry_run` print its plan.

    Raises InputError before anything starts, or if the language model leaves labels without a
    caption.
    """
    stamps = stamps_here(config)
    resources = find_resources()
    if not dry_run:
        resources = wait_for_nodes(resources, config)
    plan = make_plan(config, resources, stamps)
    if dry_run:
        _print_plan(plan, console)
        return
    check_cluster(config.paths)
    with only_driver(plan.run_folder):
        note_planned(plan.run_folder, plan.stages)
        show_labels(plan.categories, console)
        warn_of_labels(plan.categories, console)
        if not stamps and (stamps := fetch_scenes(plan, console)):
            plan = make_plan(config, plan.resources, stamps)
        fetch_vlm(plan, console)
        try:
            ran = run_stages(dict.fromkeys(plan.stages, plan), stamps, console)
        finally:
            disconnect()
        from orchestrator.runs.results import write_results  # heavy

        metrics = write_results(plan, ran)
    warn_of_unanswered(read_summary(plan.knowledge), console)
    _print_summary(plan, metrics, ran, console)


def run_stages(
    stages: Mapping[Stage, Plan], stamps: Path | None, console: Console
) -> dict[Stage, bool]:
    """Run stages, each by its plan, in the order given; return whether each was missing.

    Raises InputError if the captions do not suffice for tuning.
    """
    from orchestrator.runs.stage_work import stage_work  # heavy

    # Once for each plan: its seeds are tuned together.
    work = {id(plan): stage_work(plan, stamps, console) for plan in stages.values()}
    ran = {}
    for stage, plan in stages.items():
        ran[stage] = run_stage(stage, work[id(plan)][stage])
        if stage == plan.knowledge.stage:
            check_captions(plan.knowledge)
    return ran


def stamps_here(config: RunConfig) -> Path | None:
    """The folder of the scenes' cut-outs if the config uses scenes and this machine has them.

    Raises InputError if the cache cannot be written to.
    """
    cache = check_folder(config.paths.cache, "paths.cache")
    return stamps_source(cache) if config.evaluation.dataset == "scenes" else None


def fetch_scenes(plan: Plan, console: Console) -> Path | None:
    """Fetch the scenes' cut-outs; None if the config uses no scenes or they cannot be fetched."""
    if plan.config.evaluation.dataset != "scenes":
        return None
    try:
        with status(console, "fetching the cut-outs of the scenes (Debian package, 161 MB) …"):
            return fetch_stamps(plan.cache)
    except StampsUnavailable as error:
        if plan.config.evaluation.select_on == "evaluation":
            raise InputError(f"evaluation.select_on: no scenes to select on: {error}") from None
        console.print(
            f"No scenes: {error}\nEvaluating on held-out captions instead; for photos of your own "
            "set evaluation: {dataset: folder, root: …}.",
            style="yellow",
            markup=False,
        )
        return None


def fetch_vlm(plan: Plan, console: Console) -> None:
    """Fetch the VLM's weights before the language model works for hours. Raises InputError."""
    if plan.config.vlm.kind != "open_clip" or plan.captions.done():
        return
    from prompt_tuning.backbones import fetch_weights

    try:
        with status(console, "looking for the weights of the image–text model …"):
            fetch_weights(plan.config.vlm)
    except ValueError as error:
        raise InputError(str(error)) from None


def _print_plan(plan: Plan, console: Console) -> None:
    show_labels(plan.categories, console)
    warn_of_labels(plan.categories, console)
    table = Table("stage", "key", "state", title=f"plan of {plan.config.name}")
    for stage in plan.stages:
        table.add_row(stage.name, stage.key, "done" if stage.done() else "to do")
    console.print(table)
    if plan.config.evaluation.dataset == "scenes" and not plan.labelled.images:
        console.print("The cut-outs of the scenes are not here yet; a run fetches them first.")
    share = plan.share
    console.print(
        f"{describe_engines(plan.knowledge)}; tuning workers: {plan.config.tuning.workers}, "
        f"each {share.cpus:g} CPUs and {share.gpus:g} GPUs"
    )


def warn_of_captions(metrics: dict[str, Any], console: Console) -> None:
    """Warn of labels without captions, and of too few held-out captions."""
    for note in caption_notes(metrics):
        console.print(f"warning: {note}", style="yellow", markup=False, soft_wrap=True)


def _print_summary(
    plan: Plan, metrics: dict[str, Any], ran: dict[Stage, bool], console: Console
) -> None:
    done_before = [stage.name for stage in plan.stages if not ran[stage]]
    if len(done_before) == len(plan.stages):
        console.print("Nothing to do: every stage was done before.")
    elif done_before:
        console.print(f"Done before: {', '.join(done_before)}.")
    held_out = metrics["captions"]["held_out"]
    on_text = f"{held_out} held-out caption{'' if held_out == 1 else 's'}"
    where = evaluated_on(metrics) if plan.labelled.images else on_text
    table = Table("method", "global", "local", "fused", title=f"mAP on {where}")
    for method, by_branch in metrics["map"].items():
        table.add_row(
            method, *(f"{by_branch[branch]:.1f}" for branch in ("global", "local", "fused"))
        )
    console.print(table)
    for note in metrics["notes"]:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    if plan.config.vlm.kind == "embedded":
        console.print(
            "Figures of the embedded model, which is not CLIP (its image side saw ImageNet)."
        )
    warn_of_captions(metrics, console)
    for name in ("report.html", "artifact"):
        console.print(f"{name:<12} {plan.run_folder / name}", soft_wrap=True, highlight=False)
