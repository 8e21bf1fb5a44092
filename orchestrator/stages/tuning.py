"""The stages between captions and tuned prompts: caption features, hierarchy, one tuning a seed."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.cluster.placement import WorkerShare
from orchestrator.console import StageProgress
from orchestrator.plan.knowledge import CAPTIONS
from orchestrator.plan.run import Plan, check_coverage
from orchestrator.runs.curves import curves_folder, new_curves
from orchestrator.stages.knowledge import read_category_facts_file
from prompt_tuning.captions import read_captions
from prompt_tuning.evaluation.selection import SelectingHalf
from prompt_tuning.features import save_features
from prompt_tuning.hierarchy import Hierarchy, cluster_groups, group_by_answers
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.storage import canonical_json
from prompt_tuning.tuning.caption_set import CaptionSet, load_caption_sets
from prompt_tuning.tuning.prompts import anchor_features
from workers.tuning.driver import tune
from workers.tuning.job import Lack, Tuned, TuningJob, read_history

FEATURES = "features.safetensors"
GROUPS = "hierarchy.json"
RAY_STORAGE = ".ray"


def write_caption_features(plan: Plan, console: Console, staging: Path) -> None:
    """Encode all captions once, in Ray tasks."""
    from workers.features import encode_captions

    captions = read_captions(plan.knowledge.stage.folder / CAPTIONS, plan.categories)
    connect(plan.resources.cpus, plan.resources.gpus)
    with StageProgress(console, "caption features", len(captions)) as progress:
        features = encode_captions(
            [caption.text for caption in captions],
            plan.config.vlm,
            plan.cache,
            plan.captions.parts,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )
    save_features(staging / FEATURES, features)


def write_hierarchy(plan: Plan, staging: Path) -> None:
    """Write the groups that the config gives, or cluster the categories by answers or features."""
    hierarchy, settings = plan.groups, plan.config.hierarchy
    if settings.groups == "llm":
        facts = read_category_facts_file(plan.knowledge)
        hierarchy = group_by_answers(facts, plan.categories, settings.coarse, settings.fine)
    elif hierarchy is None:
        from prompt_tuning.backbones import load_vlm

        vlm = load_vlm(plan.config.vlm, cache=plan.cache)
        texts = anchor_features(vlm, plan.categories)
        unit = (texts / texts.norm(dim=-1, keepdim=True)).numpy()
        hierarchy = cluster_groups(unit, plan.categories, settings.coarse, settings.fine)
    (staging / GROUPS).write_text(canonical_json(asdict(hierarchy)), "utf-8")


def read_hierarchy(plan: Plan) -> Hierarchy:
    """The hierarchy that the hierarchy stage wrote."""
    groups = json.loads((plan.hierarchy.folder / GROUPS).read_bytes())
    return Hierarchy(**{name: tuple(values) for name, values in groups.items()})


def tuning_job(
    plan: Plan, seed: int, storage: Path, selecting: SelectingHalf | None = None
) -> TuningJob:
    """What workers need for a seed; `storage`: of Ray Train; `selecting`: as in `TuningJob`."""
    config = plan.config
    return TuningJob(
        captions=plan.knowledge.stage.folder / CAPTIONS,
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


def check_captions(plan: Plan) -> None:
    """Refuse captions that cannot be tuned on, as soon as the knowledge stage has them.

    Raises:
        InputError: naming the labels without any (see `check_coverage`).
        RuntimeError: when there is none at all.
    """
    coverage = caption_coverage(plan)
    if not coverage.training + coverage.held_out:
        raise RuntimeError(
            "knowledge: no caption survived the filters; see answers.parquet in "
            f"{plan.knowledge.stage.folder}"
        )
    check_coverage(coverage, plan.config.captions)


def caption_coverage(plan: Plan) -> CaptionCoverage:
    """Which labels the captions of the knowledge stage show."""
    captions = read_captions(plan.knowledge.stage.folder / CAPTIONS, plan.categories)
    return CaptionCoverage.of(captions, plan.categories, plan.config.captions.held_out)


class SeedTuning:
    """Tunes the seeds of a plan: all that are to do as soon as one is asked for, so that their
    Ray Train workers start once."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._tuned: dict[int, Tuned] = {}

    def write(self, seed: int, staging: Path) -> None:
        """Fill the stage's folder of one seed."""
        if seed not in self._tuned:
            to_do = [s for s, stage in self._plan.tuning.items() if not stage.done()]
            self._tuned = _tune(self._plan, self._console, to_do)
        self._tuned[seed].write(staging)


def _tune(plan: Plan, console: Console, seeds: list[int]) -> dict[int, Tuned]:
    """Tune these seeds' prompts in Ray Train workers, from the last checkpoint if there is one."""
    storage = plan.run_folder / RAY_STORAGE
    jobs, share = [tuning_job(plan, seed, storage) for seed in seeds], plan.share
    connect(plan.resources.cpus, plan.resources.gpus)
    title = f"tuning seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    epochs = len(seeds) * plan.config.tuning.epochs
    with StageProgress(console, title, epochs) as progress, ExitStack() as curves:
        # A resumed seed tells of all its epochs again.
        add_epoch = {
            seed: curves.enter_context(new_curves(curves_folder(plan.run_folder, seed)))
            for seed in seeds
        }

        def on_epoch(job: TuningJob, entry: dict[str, float]) -> None:
            add_epoch[job.seed](entry)
            losses = f"loss {entry['loss']:.3f}, held out {entry['held_out_loss']:.3f}"
            progress.advance(1, f"seed {job.seed}, {losses}")

        tuned = tune(
            jobs,
            storage,
            plan.tuning_run,
            share.resources,
            on_epoch,
            partial(tell_of_waiting, console, share, plan.config.tuning.workers),
        )
    return dict(zip(seeds, tuned, strict=True))


def tell_of_waiting(
    console: Console, share: WorkerShare, workers: int, seconds: float, lack: Lack
) -> None:
    """Say why no workers are up yet: on a busy cluster their resources may be taken."""
    import ray

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
    """Write the curves of all seeds, also of those that another run has tuned, and of no other."""
    shutil.rmtree(curves_folder(plan.run_folder, 0).parent, ignore_errors=True)
    for seed in plan.tuning:
        with new_curves(curves_folder(plan.run_folder, seed)) as add_epoch:
            for entry in read_history(plan.tuning[seed].folder):
                add_epoch(entry)


def read_caption_sets(plan: Plan) -> tuple[CaptionSet, CaptionSet]:
    """Training and held-out captions with their features."""
    return load_caption_sets(
        plan.knowledge.stage.folder / CAPTIONS,
        plan.captions.folder / FEATURES,
        plan.categories,
        plan.config.captions.held_out,
    )
