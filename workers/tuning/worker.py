"""Tuning as a Ray Train job: workers that share each batch with DDP and checkpoint each epoch.

The same workers tune one seed after the other: to start them takes longer than a small seed does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import ray.train
import ray.train.torch
import torch
from pydantic import Field
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file, save_file

from prompt_tuning.backbones.base import VLM, VLMSettings, load_vlm
from prompt_tuning.captions import read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.selection import SelectingHalf
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.storage import canonical_json, naming, write_atomic
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import (
    ClassPrompts,
    NotFiniteError,
    TuningRun,
    TuningSettings,
    load_caption_sets,
)
from workers.tuning.slots import SlotGivenBack

CLASSES = "class_features.safetensors"
HISTORY = "history.json"
_STATE = "state.pt"
_CAPTIONS_SHOWN = 3
_SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_WAITS = 30.0

OnEpoch = Callable[[dict[str, float]], None]
OnEpochOf = Callable[["TuningJob", dict[str, float]], None]
# Seconds since the start, and what the jobs wait for.
Lack = Literal["resources", "processes"]
OnWaiting = Callable[[float, Lack], None]


class DistributedTuningSettings(TuningSettings):
    """`workers` share each batch. `auto`: a GPU each where there are enough, at most one CPU.

    `pool`: the custom Ray resource of the nodes that workers may be on.
    """

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | Literal["auto"] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] | Literal["auto"] = "auto"
    pool: Annotated[str, Field(min_length=1)] | None = None


@dataclass(frozen=True)
class TuningJob:
    """What workers need for a seed; paths are absolute, for workers change their directory.

    `threads`: of each worker, on a CPU. `selecting`: the labelled images on which each epoch's
    prompts are measured, where such choose. `slots`: where workers that have loaded wait for their
    turn (an actor of `Slots`).
    """

    captions: Path
    features: Path
    held_out: float
    categories: CategoryList
    hierarchy: Hierarchy
    vlm: VLMSettings
    prompts: PromptSettings
    scoring: ScoringSettings
    losses: LossSettings
    tuning: DistributedTuningSettings
    seed: int
    cache: Path
    progress: Path
    threads: int = 1
    selecting: SelectingHalf | None = None
    slots: ActorHandle | None = None

    @property
    def name(self) -> str:
        """What no other job at work on the same storage is called."""
        return self.progress.name

    @property
    def not_finite(self) -> Path:
        """Where rank 0 writes down the batch whose loss was not finite."""
        return self.progress.with_suffix(".not_finite.json")


@dataclass(frozen=True)
class Tuned:
    """What came of a seed: the class features of the best epoch ("global" and "local",
    `(classes, dim)`) with the tokens behind them (see `TuningRun.best_tokens`), and the history."""

    classes: dict[str, torch.Tensor]
    history: list[dict[str, float]]

    def write(self, staging: Path) -> None:
        """Write both into a stage's folder."""
        save_file(self.classes, staging / CLASSES)
        (staging / HISTORY).write_text(canonical_json(self.history), "utf-8")


def read_classes(folder: Path) -> ClassFeatures:
    """The class features that `Tuned.write` wrote."""
    tensors = load_file(folder / CLASSES)
    return ClassFeatures(tensors["global"], tensors["local"])


def read_tokens(folder: Path) -> dict[str, torch.Tensor]:
    """The tokens behind these class features (see `TuningRun.best_tokens`)."""
    tensors = load_file(folder / CLASSES)
    return {name: tensor for name, tensor in tensors.items() if name not in ("global", "local")}


def read_history(folder: Path) -> list[dict[str, float]]:
    """One entry an epoch: epoch, loss, held_out_loss, held_out_map (0-100)."""
    history: list[dict[str, float]] = json.loads((folder / HISTORY).read_bytes())
    return history


def tune(
    jobs: Sequence[TuningJob],
    storage: Path,
    name: str,
    resources: dict[str, float],
    on_epoch: OnEpochOf,
    on_waiting: OnWaiting,
) -> list[Tuned]:
    """Run workers through seeds of one config, from the last checkpoint of the same storage and
    name: seeds that it has are not tuned again.

    `resources`: of each worker, by Ray's names, with a number of GPUs that may be 0.
    `on_epoch` is told of each epoch of the history once more when it resumes: with `at`, the time
    at which it ended, and `selecting_map` (0-100) where images select. `on_waiting` is called now
    and then until the workers are up, with the seconds that this has taken and what is lacking:
    resources, or else processes that start, import and load the model.

    Raises:
        RuntimeError: for a loss that is not finite, with the step and the captions of its batch;
            the last good checkpoint stays in `storage`.
    """
    _discard_torn_snapshot(storage / name)
    for job in jobs:
        job.not_finite.unlink(missing_ok=True)
    callbacks: list[Any] = [SlotGivenBack(job.slots, job.name) for job in jobs if job.slots]
    trainer = _Trainer(
        _train_loop,
        # By reference: its controller has no use for it, and would import all of this module.
        train_loop_config={"jobs": ray.put(list(jobs))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=jobs[0].tuning.workers,
            use_gpu=resources["GPU"] > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=2 * len(jobs)),
            callbacks=callbacks,
        ),
    )
    bundle = {name: amount for name, amount in resources.items() if amount}
    lack = partial(_lack, [bundle] * jobs[0].tuning.workers, set(placement_group_table()))
    finished = threading.Event()
    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(_watch, jobs, on_epoch, on_waiting, lack, finished)
        try:
            result = trainer.fit()
        finally:
            finished.set()
    watching.result()  # it may have found no room for what it writes
    for job in jobs:
        if job.not_finite.exists():
            raise RuntimeError(f"tuning: {_not_finite(job)}; checkpoints are in {storage / name}")
    assert result.checkpoint is not None
    tuned = _state(result.checkpoint)["tuned"]
    return [Tuned(**tuned[job.name]) for job in jobs]


def _state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """What `_report` has kept: "tuned", by the job's name, and "run", of the job "at_work"."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder, _STATE), weights_only=True, map_location="cpu"
        )
        return state


class _Trainer(ray.train.torch.TorchTrainer):
    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the driver's handler: Ray's ends the driver with exit code 1 and no message."""


def _not_finite(job: TuningJob) -> str:
    """What rank 0 has told of the batch whose loss was not finite, with its captions."""
    told = json.loads(job.not_finite.read_bytes())
    captions = read_captions(job.captions, job.categories)
    texts = [captions[row].text for row in told["rows"]]
    listed = job.not_finite.with_suffix(".txt")
    write_atomic(listed, ("\n".join(texts) + "\n").encode())
    shown = " | ".join(texts[:_CAPTIONS_SHOWN])
    return f"{told['what']}, in a batch of {len(texts)} captions (all in {listed}): {shown}"


def _discard_torn_snapshot(folder: Path) -> None:
    """Start afresh where the list of checkpoints was being written when the driver was killed.

    Ray Train writes that list in place and refuses to start with half of one.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_bytes() if snapshot.exists() else b"{}")
    except ValueError:
        shutil.rmtree(folder)


def _lack(bundles: list[dict[str, float]], earlier: set[str]) -> Lack:
    """What workers of these bundles wait for, in a placement group that was not there `earlier`."""
    states = {
        group["state"]
        for name, group in placement_group_table().items()
        if name not in earlier and list(group["bundles"].values()) == bundles
    }
    return "resources" if "PENDING" in states and "CREATED" not in states else "processes"


def _watch(
    jobs: Sequence[TuningJob],
    on_epoch: OnEpochOf,
    on_waiting: OnWaiting,
    lack: Callable[[], Lack],
    finished: threading.Event,
) -> None:
    """Tell of each epoch that rank 0 has written down, until the jobs have finished."""
    began, waits, told = time.time(), 0, dict.fromkeys(range(len(jobs)), 0)
    last_look = False
    while not last_look:
        last_look = finished.wait(_SECONDS_BETWEEN_LOOKS)
        there = {number: job for number, job in enumerate(jobs) if job.progress.exists()}
        # Rank 0 writes a file when the workers are up, also when there is one from before.
        up = any(job.progress.stat().st_mtime >= began for job in there.values())
        waited = time.time() - began
        if not up and waited > (waits + 1) * SECONDS_BETWEEN_WAITS:
            waits += 1
            on_waiting(waited, lack())
        for number, job in there.items():
            entries = json.loads(job.progress.read_bytes())
            for entry in entries[told[number] :]:
                on_epoch(job, entry)
            # Shorter than before where workers have gone back to an earlier checkpoint.
            told[number] = max(told[number], len(entries))


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs: load, then tune seed by seed, from the last checkpoint on."""
    jobs: list[TuningJob] = ray.get(config["jobs"])
    torch.set_num_threads(jobs[0].threads)
    vlm = load_vlm(jobs[0].vlm, ray.train.torch.get_device(), jobs[0].cache)
    checkpoint = ray.train.get_checkpoint()
    state = _state(checkpoint) if checkpoint else {"tuned": {}, "at_work": None, "run": None}
    tuned: dict[str, dict[str, Any]] = state["tuned"]
    for job in jobs:
        if job.name in tuned:
            continue
        try:
            _tune_seed(job, vlm, tuned, state["run"] if state["at_work"] == job.name else None)
        except NotFiniteError as error:
            # It would fail again, so this is no failure to Ray, which would start again.
            if ray.train.get_context().get_world_rank() == 0:
                told = {"what": str(error), "rows": error.rows}
                write_atomic(job.not_finite, canonical_json(told).encode())
            return


def _tune_seed(
    job: TuningJob, vlm: VLM, tuned: dict[str, dict[str, Any]], state: dict[str, Any] | None
) -> None:
    """Wrap a seed's prompts in DDP, tune them epoch by epoch, and add what came of it to `tuned`.

    `state`: of an unfinished run of this seed.
    """
    device = ray.train.torch.get_device()
    rank = ray.train.get_context().get_world_rank()
    prompts = ClassPrompts(
        vlm,
        job.categories,
        job.hierarchy,
        job.prompts,
        job.scoring,
        job.losses,
        job.seed,
    ).to(device)
    train, held_out = load_caption_sets(job.captions, job.features, job.categories, job.held_out)
    # Without the search for unused parameters DDP would sort its buckets anew after the first step,
    # and three or more processes add up in another order after a resume than before it.
    model = ray.train.torch.prepare_model(
        prompts, parallel_strategy_kwargs={"find_unused_parameters": True}
    )
    run = TuningRun(prompts, model, train, held_out, job.tuning, job.seed)
    if state:
        run.load_state_dict(state)
    if job.slots:
        ray.get(job.slots.enter.remote(job.name))
    diary = _Diary(job, run) if rank == 0 else None
    while run.epochs_done < job.tuning.epochs:
        entry = run.run_epoch()
        # By all ranks, for each encodes a share of the prompts for the others.
        best = run.best_class_features() if job.selecting else None
        if diary:
            diary.add(entry, best)
        at_work = {"at_work": job.name, "run": run.state_dict()}
        _report(job, entry, rank, {"tuned": tuned, **at_work})
    classes = {**run.best_class_features(), **run.best_tokens()}
    if job.slots and rank == 0:
        job.slots.leave.remote(job.name)
    tuned[job.name] = {"classes": classes, "history": run.history}
    _report(job, {"finished": 1.0}, rank, {"tuned": tuned, "at_work": None, "run": None})


class _Diary:
    """What rank 0 tells of its epochs while it tunes; times have no place in the history itself."""

    def __init__(self, job: TuningJob, run: TuningRun) -> None:
        self._job, self._run = job, run
        self._items = job.selecting.load() if job.selecting else None
        self._entries: list[dict[str, float]] = []
        if run.epochs_done:
            self._entries = json.loads(job.progress.read_bytes())[: run.epochs_done]
        self._started = time.time()
        self._write()

    def add(self, entry: dict[str, float], best: dict[str, torch.Tensor] | None) -> None:
        """Write down an epoch, with the mAP on the images that select where there are such.

        `best`: the class features to measure, where images select (see `best_class_features`).
        """
        told = {**entry, "started": self._started, "at": time.time()}
        if self._job.selecting:
            assert self._items is not None and best is not None
            told["selecting_map"] = self._job.selecting.fused_map(
                self._items,
                ClassFeatures(best["global"], best["local"]),
                self._run.prompts.geometry,
                self._run.prompts.fusion,
            )
        self._entries.append(told)
        self._write()

    def _write(self) -> None:
        write_atomic(self._job.progress, canonical_json(self._entries).encode())


def _report(job: TuningJob, metrics: dict[str, float], rank: int, state: dict[str, Any]) -> None:
    """Report to all ranks at once; rank 0 brings the checkpoint."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with naming(job.progress.parent), tempfile.TemporaryDirectory() as folder:
        with naming(folder):
            torch.save(state, Path(folder, _STATE))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
