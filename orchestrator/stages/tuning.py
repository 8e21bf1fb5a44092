"""The tuning stages, one per seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.stages.hierarchy import read_hierarchy
from prompt_tuning.evaluation.selection import SelectingHalf
from prompt_tuning.features import FEATURES
from workers.tuning.driver import tune
from workers.tuning.job import OnEpochOf, OnWaiting, Tuned, TuningJob

if TYPE_CHECKING:
    from orchestrator.plan.run import Plan

RAY_STORAGE = ".ray"


def tune_seeds(
    plan: Plan, seeds: Sequence[int], on_epoch: OnEpochOf, on_waiting: OnWaiting
) -> dict[int, Tuned]:
    """Tune these seeds in the same Ray Train workers, from the last checkpoint if there is one."""
    storage = plan.run_folder / RAY_STORAGE
    jobs = [tuning_job(plan, seed, storage) for seed in seeds]
    tuned = tune(jobs, storage, plan.tuning_run, plan.share.resources, on_epoch, on_waiting)
    return dict(zip(seeds, tuned, strict=True))


def tuning_job(
    plan: Plan, seed: int, storage: Path, selecting: SelectingHalf | None = None
) -> TuningJob:
    """The job of one seed. `storage`: Ray Train's folder. `selecting`: see `TuningJob`."""
    config = plan.config
    return TuningJob(
        captions=plan.knowledge.captions_file,
        features=plan.captions.folder / FEATURES,
        held_out=config.captions.held_out,
        categories=plan.categories,
        hierarchy=read_hierarchy(plan),
        vlm=config.vlm,
        prompts=config.prompts,
        scoring=config.scoring,
        losses=config.losses,
        tuning=config.tuning,
        seed=seed,
        cache=plan.cache,
        progress=storage / f"{plan.tuning[seed].key}.progress.json",
        threads=max(1, int(plan.share.cpus)),
        selecting=selecting,
    )
