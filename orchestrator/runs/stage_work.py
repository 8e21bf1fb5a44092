"""The functions that fill the folders of a plan's stages: in Ray, and with progress shown."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import ray
from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.console import StageProgress
from orchestrator.plan.run import ImagesPlan, Plan
from orchestrator.runs.curves import curves_folder, new_curves
from orchestrator.runs.knowledge_job import Work, knowledge_work
from orchestrator.stages.evaluation import write_evaluation
from orchestrator.stages.features import write_caption_features, write_image_features
from orchestrator.stages.hierarchy import write_hierarchy
from orchestrator.stages.images import read_images, write_photos
from orchestrator.stages.tuning import tune_seeds
from prompt_tuning.datasets.scenes import compose_scenes
from workers.placement import Placement
from workers.stage import Stage
from workers.tuning.job import Lack, Tuned, TuningJob, read_history


def stage_work(plan: Plan, stamps: Path | None, console: Console) -> dict[Stage, Work]:
    """For each stage of a plan, the function that fills its folder."""

    def in_ray(work: Work) -> Work:
        def connected(staging: Path) -> None:
            connect(plan.resources.cpus, plan.resources.gpus)
            work(staging)

        return connected

    captions = partial(write_caption_features, plan, partial(StageProgress, console))

    tuning = _SeedTuning(plan, console)
    return {
        plan.knowledge.stage: knowledge_work(plan.knowledge, console, dashboard=True),
        plan.captions: in_ray(captions),
        plan.hierarchy: in_ray(partial(write_hierarchy, plan)),
        **{stage: partial(tuning.write, seed) for seed, stage in plan.tuning.items()},
        **images_work(plan.labelled, stamps, console, dashboard=True),
        plan.evaluation: in_ray(partial(write_evaluation, plan)),
    }


def images_work(
    plan: ImagesPlan, stamps: Path | None, console: Console, dashboard: bool = False
) -> dict[Stage, Work]:
    """The same for the images and their features.

    `stamps`: the folder of the scenes' cut-outs. `dashboard`: see `connect`.
    """
    if not (plan.images and plan.features):
        return {}

    def image_features(staging: Path) -> None:
        connect(plan.resources.cpus, plan.resources.gpus, dashboard=dashboard)
        files = read_images(plan).files
        write_image_features(plan, files, partial(StageProgress, console), staging)

    images: Work = partial(write_photos, plan)
    if plan.settings.dataset == "scenes":
        assert stamps is not None
        images = partial(compose_scenes, stamps, plan.settings.scenes)
    return {plan.images: images, plan.features: image_features}


class _SeedTuning:
    """Tunes all missing seeds of a plan at the first call, so that Ray Train workers start once."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._tuned: dict[int, Tuned] = {}

    def write(self, seed: int, staging: Path) -> None:
        if seed not in self._tuned:
            self._tune([s for s, stage in self._plan.tuning.items() if not stage.done()])
        self._tuned[seed].write(staging)

    def _tune(self, seeds: list[int]) -> None:
        plan, console = self._plan, self._console
        connect(plan.resources.cpus, plan.resources.gpus)
        title = f"tuning seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        epochs = len(seeds) * plan.config.tuning.epochs
        with StageProgress(console, title, epochs) as progress, ExitStack() as curves:
            # A resumed seed reports all its epochs again.
            add_epoch = {
                seed: curves.enter_context(new_curves(curves_folder(plan.run_folder, seed)))
                for seed in seeds
            }

            def on_epoch(job: TuningJob, entry: dict[str, float]) -> None:
                add_epoch[job.seed](entry)
                losses = f"loss {entry['loss']:.3f}, held out {entry['held_out_loss']:.3f}"
                progress.advance(1, f"seed {job.seed}, {losses}")

            workers = plan.config.tuning.workers
            on_waiting = partial(report_waiting, console, plan.share, workers)
            self._tuned = tune_seeds(plan, seeds, on_epoch, on_waiting)


def report_waiting(
    console: Console, share: Placement, workers: int, seconds: float, lack: Lack
) -> None:
    """Print why no workers have started yet."""
    if lack == "processes":
        console.print(
            f"tuning: {workers} worker processes have been starting and loading the image–text "
            f"model for {seconds:.0f} s"
        )
        return
    free = ray.available_resources()
    console.print(
        f"waiting for resources for {seconds:.0f} s: tuning needs {workers} × ({share.cpus:g} CPUs "
        f"and {share.gpus:g} GPUs); there are {free.get('CPU', 0):g} CPUs and "
        f"{free.get('GPU', 0):g} GPUs free",
        style="yellow",
    )


def write_curves(plan: Plan) -> None:
    """Write the curves of the plan's seeds, whichever run tuned them, and remove all others."""
    shutil.rmtree(curves_folder(plan.run_folder, 0).parent, ignore_errors=True)
    for seed in plan.tuning:
        with new_curves(curves_folder(plan.run_folder, seed)) as add_epoch:
            for entry in read_history(plan.tuning[seed].folder):
                add_epoch(entry)
