"""A tuning worker: shares each batch with the others by DDP and checkpoints each epoch.

The same workers tune one seed after the other: starting them takes longer than a small seed.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.storage import canonical_json, naming, write_atomic
from prompt_tuning.tuning.caption_set import load_caption_sets
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.trainer import NotFiniteError, TuningRun
from workers.tuning.job import TuningJob

_STATE = "state.pt"


def load_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """What `_report` saved: results of seeds by job name ("tuned"), and the unfinished "run" of the
    job named "at_work"."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder, _STATE), weights_only=True, map_location="cpu"
        )
        return state


def train_loop(config: dict[str, Any]) -> None:
    """Runs in each worker: load the VLM, then tune seed by seed, from the last checkpoint on."""
    jobs: list[TuningJob] = ray.get(config["jobs"])
    torch.set_num_threads(jobs[0].threads)
    vlm = load_vlm(jobs[0].vlm, ray.train.torch.get_device(), jobs[0].cache)
    checkpoint = ray.train.get_checkpoint()
    state = load_state(checkpoint) if checkpoint else {"tuned": {}, "at_work": None, "run": None}
    tuned: dict[str, dict[str, Any]] = state["tuned"]
    for job in jobs:
        if job.name in tuned:
            continue
        try:
            _tune_seed(job, vlm, tuned, state["run"] if state["at_work"] == job.name else None)
        except NotFiniteError as error:
            # Raised here, Ray would start the workers again, and they would fail again.
            if ray.train.get_context().get_world_rank() == 0:
                batch = {"what": str(error), "rows": error.rows}
                write_atomic(job.not_finite, canonical_json(batch).encode())
            return


def _tune_seed(
    job: TuningJob, vlm: VLM, tuned: dict[str, dict[str, Any]], state: dict[str, Any] | None
) -> None:
    """Wrap a seed's prompts in DDP, tune them epoch by epoch, and add the result to `tuned`.

    `state`: of an unfinished run of this seed, if there is one.
    """
    device = ray.train.torch.get_device()
    rank = ray.train.get_context().get_world_rank()
    prompts = ClassPrompts(
        vlm, job.categories, job.hierarchy, job.prompts, job.scoring, job.losses, job.seed
    ).to(device)
    train, held_out = load_caption_sets(job.captions, job.features, job.categories, job.held_out)
    # Without the search for unused parameters DDP sorts its buckets again after the first step;
    # three or more processes would then add up in another order after a resume than before it.
    model = ray.train.torch.prepare_model(
        prompts, parallel_strategy_kwargs={"find_unused_parameters": True}
    )
    run = TuningRun(prompts, model, train, held_out, job.tuning, job.seed)
    if state:
        run.load_state_dict(state)
    if job.slots:
        ray.get(job.slots.wait_to_tune.remote(job.name))
    log = _EpochLog(job, run) if rank == 0 else None
    while run.epochs_done < job.tuning.epochs:
        entry = run.run_epoch()
        # On all ranks: each encodes a share of the prompts for the others.
        best = run.best_class_features() if job.selecting else None
        if log:
            log.add(entry, best)
        at_work = {"at_work": job.name, "run": run.state_dict()}
        _report(job, entry, rank, {"tuned": tuned, **at_work})
    classes = {**run.best_class_features(), **run.best_tokens()}
    if job.slots and rank == 0:
        job.slots.release.remote(job.name)
    tuned[job.name] = {"classes": classes, "history": run.history}
    _report(job, {"finished": 1.0}, rank, {"tuned": tuned, "at_work": None, "run": None})


class _EpochLog:
    """The file in which the driver follows rank 0: the history, with times and the mAP on images
    that select. Neither may be in the history itself, which has to repeat to the byte."""

    def __init__(self, job: TuningJob, run: TuningRun) -> None:
        self._job, self._run = job, run
        self._items = job.selecting.load() if job.selecting else None
        self._entries: list[dict[str, float]] = []
        if run.epochs_done:
            self._entries = json.loads(job.progress.read_bytes())[: run.epochs_done]
        self._started = time.time()
        self._write()

    def add(self, entry: dict[str, float], best: dict[str, torch.Tensor] | None) -> None:
        """Write down an epoch, with the mAP on the images that select if there are any.

        `best`: the class features to measure there (see `TuningRun.best_class_features`).
        """
        logged = {**entry, "started": self._started, "at": time.time()}
        if self._job.selecting:
            assert self._items is not None and best is not None
            logged["selecting_map"] = self._job.selecting.fused_map(
                self._items,
                ClassFeatures(best["global"], best["local"]),
                self._run.prompts.geometry,
                self._run.prompts.fusion,
            )
        self._entries.append(logged)
        self._write()

    def _write(self) -> None:
        write_atomic(self._job.progress, canonical_json(self._entries).encode())


def _report(job: TuningJob, metrics: dict[str, float], rank: int, state: dict[str, Any]) -> None:
    """Report from all ranks (Ray Train waits for each); rank 0 brings the checkpoint."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with naming(job.progress.parent), tempfile.TemporaryDirectory() as folder:
        with naming(folder):
            torch.save(state, Path(folder, _STATE))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
