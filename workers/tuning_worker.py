"""Tuning as a Ray Train job: workers that share each batch with DDP and checkpoint each epoch."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ray.train
import ray.train.torch
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from prompt_tuning.captions import read_captions
from prompt_tuning.categories import CategoryList
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.losses import LossSettings
from prompt_tuning.prompts import PromptSettings
from prompt_tuning.scoring import ScoringSettings
from prompt_tuning.store import canonical_json, write_atomic
from prompt_tuning.tuning import (
    ClassPrompts,
    NotFiniteError,
    TuningRun,
    TuningSettings,
    load_caption_sets,
)
from prompt_tuning.vlm import VLMSettings, load_vlm

_STATE = "state.pt"
_RESULT = "class_features.safetensors"
_CAPTIONS_SHOWN = 3


class DistributedTuningSettings(TuningSettings):
    """`workers` share each batch. `auto`: a GPU each where there are enough, at most one CPU."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | Literal["auto"] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class TuningJob:
    """What one seed's workers need; paths are absolute, for workers change their directory."""

    captions: Path
    features: Path
    held_out: float
    categories: CategoryList
    hierarchy: Hierarchy
    depth: int
    vlm: VLMSettings
    prompts: PromptSettings
    scoring: ScoringSettings
    losses: LossSettings
    tuning: DistributedTuningSettings
    seed: int
    cache: Path
    progress: Path

    @property
    def not_finite(self) -> Path:
        """Where rank 0 writes down the batch whose loss was not finite."""
        return self.progress.with_suffix(".not_finite.json")


def tune(
    job: TuningJob,
    storage: Path,
    name: str,
    gpus: float,
    cpus: float,
    on_epoch: Callable[[dict[str, float]], None],
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Run a seed's workers to the end, from the last checkpoint of the same storage and name.

    Returns:
        class features of the best epoch ("global" and "local", `(classes, dim)`) with the tokens
        behind them (see `TuningRun.best_tokens`), and the history.

    Raises:
        RuntimeError: for a loss that is not finite, with the step and the captions of its batch;
            the last good checkpoint stays in `storage`.
    """
    _discard_torn_snapshot(storage / name)
    job.not_finite.unlink(missing_ok=True)
    trainer = ray.train.torch.TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.tuning.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=2),
        ),
    )
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(job.progress, on_epoch, finished), daemon=True)
    watcher.start()
    try:
        result = trainer.fit()
    finally:
        finished.set()
        watcher.join()
    if job.not_finite.exists():
        raise RuntimeError(f"tuning: {_not_finite(job)}; checkpoints are in {storage / name}")
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, _STATE), weights_only=True, map_location="cpu")
        return load_file(Path(folder, _RESULT)), state["history"]


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
    """Start a seed afresh whose list of checkpoints was being written when its driver was killed.

    Ray Train writes that list in place and refuses to start with half of one.
    """
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_bytes() if snapshot.exists() else b"{}")
    except ValueError:
        shutil.rmtree(folder)


def _watch(
    progress: Path, on_epoch: Callable[[dict[str, float]], None], finished: threading.Event
) -> None:
    """Tell of each epoch that rank 0 has written down, until the job has finished."""
    told = 0
    last_look = False
    while not last_look:
        last_look = finished.wait(0.5)
        if progress.exists():
            history = json.loads(progress.read_bytes())
            for entry in history[told:]:
                on_epoch(entry)
            # Shorter than before where workers have gone back to an earlier checkpoint.
            told = max(told, len(history))


def _train_loop(config: dict[str, Any]) -> None:
    """What each worker runs: load, wrap in DDP, go on from the last checkpoint, epoch by epoch."""
    job: TuningJob = config["job"]
    device = ray.train.torch.get_device()
    rank = ray.train.get_context().get_world_rank()
    vlm = load_vlm(job.vlm, device, job.cache)
    prompts = ClassPrompts(
        vlm,
        job.categories,
        job.hierarchy,
        job.depth,
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
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, _STATE), weights_only=True, map_location="cpu")
            run.load_state_dict(state)
    while run.epochs_done < job.tuning.epochs:
        try:
            entry = run.run_epoch()
        except NotFiniteError as error:
            # It would fail again, so this is no failure to Ray, which would start again.
            if rank == 0:
                told = {"what": str(error), "rows": error.rows}
                write_atomic(job.not_finite, canonical_json(told).encode())
            return
        if rank == 0:
            write_atomic(job.progress, canonical_json(run.history).encode())
        _report(entry, run, rank, result=None)
    result = {**run.best_class_features(), **run.best_tokens()}
    _report({"finished": 1.0}, run, rank, result=result)


def _report(
    metrics: dict[str, float], run: TuningRun, rank: int, result: dict[str, torch.Tensor] | None
) -> None:
    """Report to all ranks at once; rank 0 brings the checkpoint."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(run.state_dict(), Path(folder, _STATE))
        if result is not None:
            save_file(result, Path(folder, _RESULT))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
