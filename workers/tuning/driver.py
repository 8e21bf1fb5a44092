"""The driver of a tuning: starts Ray Train workers, follows their epochs, collects the results."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.util.placement_group import placement_group_table

from prompt_tuning.captions import captions_at
from prompt_tuning.storage import write_atomic
from workers.tuning.job import Lack, OnEpochOf, OnWaiting, Tuned, TuningJob
from workers.tuning.slots import ReleaseOnFailure
from workers.tuning.worker import load_state, train_loop

_CAPTIONS_SHOWN = 3
_SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_WAITS = 30.0


def tune(
    jobs: Sequence[TuningJob],
    storage: Path,
    name: str,
    resources: dict[str, float],
    on_epoch: OnEpochOf,
    on_waiting: OnWaiting,
) -> list[Tuned]:
    """Tune the seeds of one config, one after the other, in the same Ray Train workers.

    A tuning that was interrupted resumes from the last checkpoint under the same `storage` and
    `name`; seeds in that checkpoint are not tuned again.

    Args:
        resources: of each worker, by Ray's names; "GPU" must be present and may be 0.
        on_epoch: called with each entry of the history, after a resume with all of them again.
            Entries also have `started` and `at`, the times at which the tuning began and the epoch
            ended, and `selecting_map` (0-100) where images select.
        on_waiting: called every half a minute until the workers are up, with the seconds so far and
            what is missing: free resources, or processes that still start, import and load.

    Raises:
        RuntimeError: if a loss is not finite, with the step and the captions of its batch; the last
            good checkpoint stays in `storage`.
    """
    _discard_torn_snapshot(storage / name)
    for job in jobs:
        job.not_finite.unlink(missing_ok=True)
    callbacks: list[Any] = [ReleaseOnFailure(job.slots, job.name) for job in jobs if job.slots]
    trainer = _Trainer(
        train_loop,
        # By reference: the controller does not use the jobs, and would import their modules.
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
    watching.result()  # raises what `on_epoch` raised, such as a full disk
    for job in jobs:
        if job.not_finite.exists():
            raise RuntimeError(f"tuning: {_not_finite(job)}; checkpoints are in {storage / name}")
    assert result.checkpoint is not None
    tuned = load_state(result.checkpoint)["tuned"]
    return [Tuned(**tuned[job.name]) for job in jobs]


class _Trainer(ray.train.torch.TorchTrainer):
    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the driver's handler: Ray's ends the driver with exit code 1 and no message."""


def _not_finite(job: TuningJob) -> str:
    """Describe the batch whose loss was not finite, as rank 0 recorded it, with its captions."""
    batch = json.loads(job.not_finite.read_bytes())
    captions = captions_at(job.captions, job.categories, batch["rows"])
    texts = [captions[row].text for row in batch["rows"]]
    listed = job.not_finite.with_suffix(".txt")
    write_atomic(listed, ("\n".join(texts) + "\n").encode())
    shown = " | ".join(texts[:_CAPTIONS_SHOWN])
    return f"{batch['what']}, in a batch of {len(texts)} captions (all in {listed}): {shown}"


def _discard_torn_snapshot(folder: Path) -> None:
    """Remove a list of checkpoints that was cut short when the driver was killed.

    Ray Train writes that list in place and refuses to start with half of it.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_bytes() if snapshot.exists() else b"{}")
    except ValueError:
        shutil.rmtree(folder)


def _lack(bundles: list[dict[str, float]], earlier: set[str]) -> Lack:
    """What workers with these bundles wait for; placement groups in `earlier` are not theirs."""
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
    """Pass on each epoch that rank 0 has written down, until the jobs have finished."""
    began, waits, passed_on = time.time(), 0, dict.fromkeys(range(len(jobs)), 0)
    last_look = False
    while not last_look:
        last_look = finished.wait(_SECONDS_BETWEEN_LOOKS)
        started = {number: job for number, job in enumerate(jobs) if job.progress.exists()}
        # Rank 0 writes its file as soon as the workers are up, also over one from before.
        up = any(job.progress.stat().st_mtime >= began for job in started.values())
        waited = time.time() - began
        if not up and waited > (waits + 1) * SECONDS_BETWEEN_WAITS:
            waits += 1
            on_waiting(waited, lack())
        for number, job in started.items():
            entries = json.loads(job.progress.read_bytes())
            for entry in entries[passed_on[number] :]:
                on_epoch(job, entry)
            # The file gets shorter when workers go back to an earlier checkpoint.
            passed_on[number] = max(passed_on[number], len(entries))
