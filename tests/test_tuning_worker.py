"""Ray Train with two real workers: as one worker would, and the same after a worker is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from orchestrator.cluster import connect, disconnect
from prompt_tuning.captions import Caption, CaptionWriter, read_captions
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.features import load_features, save_features
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.losses import LossSettings
from prompt_tuning.prompts import PromptSettings
from prompt_tuning.scoring import ScoringSettings
from prompt_tuning.selection import SelectingHalf
from prompt_tuning.tuning import caption_labels
from prompt_tuning.vlm import VLM, VLMSettings
from workers import tuning_worker
from workers.tuning_worker import DistributedTuningSettings, Lack, TuningJob, tune

NAMES = ("dog", "bicycle", "violin", "lemon", "car")
CATEGORIES = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
HIERARCHY = parse_groups(
    {"alive": {"animals": ["dog"], "fruit": ["lemon"]}, "made": {"rides": ["bicycle", "car"],
     "music": ["violin"]}},
    CATEGORIES,
    "test",
)  # fmt: skip
HALF_A_CPU = {"CPU": 0.5, "GPU": 0.0}
EPOCHS = 6


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    connect()
    yield
    disconnect()


@pytest.fixture
def job(
    tmp_path: Path, embedded_vlm: VLM, embedded_settings: VLMSettings, lasting_cache: Path
) -> TuningJob:
    captions = [
        Caption(f"A {look} {name} stands {place}.", (index,), "file")
        for index, name in enumerate(NAMES)
        for look in ("small", "old", "bright", "wet")
        for place in ("in the park", "near a wall", "by the road")
    ]
    with CaptionWriter(tmp_path / "captions.parquet", CATEGORIES) as writer:
        for caption in captions:
            writer.write_caption(caption)
    features = embedded_vlm.encode_captions([caption.text for caption in captions])
    save_features(tmp_path / "features.safetensors", features)
    return TuningJob(
        captions=tmp_path / "captions.parquet",
        features=tmp_path / "features.safetensors",
        held_out=0.2,
        categories=CATEGORIES,
        hierarchy=HIERARCHY,
        depth=4,
        vlm=embedded_settings,
        prompts=PromptSettings(),
        scoring=ScoringSettings(),
        losses=LossSettings(),
        tuning=DistributedTuningSettings(epochs=EPOCHS, batch=17, workers=2, milestones=(4,)),
        seed=0,
        cache=lasting_cache,
        progress=tmp_path / "progress.json",
        # Captions stand in for images here too.
        selecting=SelectingHalf(
            tmp_path / "features.safetensors",
            np.arange(0, len(captions), 3),
            caption_labels(captions, len(NAMES))[::3].numpy(),
            None,
        ),
    )


def without_times(told: list[dict[str, float]]) -> list[dict[str, float]]:
    """What is told of the epochs, without what no history has."""
    others = ("at", "started", "selecting_map")
    return [{k: v for k, v in entry.items() if k not in others} for entry in told]


def run(job: TuningJob, storage: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    told: list[dict[str, float]] = []
    job = replace(job, progress=storage / "progress.json")
    classes, history = tune(
        job, storage, "run", HALF_A_CPU, told.append, on_waiting=lambda seconds, lack: None
    )
    assert without_times(told) == history, "each epoch is told once, whatever happens on the way"
    return classes, history


def test_two_workers_tune_as_one_does_and_survive_a_kill(job: TuningJob, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    two, history = tune(
        replace(job, progress=tmp_path / "two" / "progress.json"),
        tmp_path / "two",
        "run",
        HALF_A_CPU,
        on_epoch=told.append,
        on_waiting=lambda seconds, lack: None,
    )
    assert [entry["epoch"] for entry in history] == list(range(1, EPOCHS + 1))
    assert without_times(told) == history
    assert all(entry["started"] < entry["at"] and entry["selecting_map"] > 0 for entry in told)
    assert history[-1]["loss"] < history[0]["loss"]
    assert two["global"].shape == two["local"].shape == (len(NAMES), 384)

    alone = replace(job, tuning=job.tuning.model_copy(update={"workers": 1}))
    one, _ = run(alone, tmp_path / "one")
    for branch in ("global", "local"):
        assert torch.allclose(one[branch], two[branch], atol=1e-5)

    killed_at: list[int] = []
    killer = threading.Thread(
        target=_kill_a_worker, args=(tmp_path / "killed" / "progress.json", killed_at), daemon=True
    )
    killer.start()
    disturbed, disturbed_history = run(job, tmp_path / "killed")
    assert killed_at and killed_at[0] < EPOCHS, "no worker was killed in the middle"
    assert disturbed_history == history
    for branch in ("global", "local"):
        assert torch.equal(disturbed[branch], two[branch])


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_batch(
    job: TuningJob, tmp_path: Path
) -> None:
    storage = tmp_path / "not finite"
    two_epochs = job.tuning.model_copy(update={"epochs": 2, "workers": 1})
    _, history = run(replace(job, tuning=two_epochs), storage)
    features = load_features(job.features)
    spoilt = features.pooled.clone()
    spoilt[5] = math.nan
    save_features(tmp_path / "spoilt.safetensors", features._replace(pooled=spoilt))
    on = replace(
        job,
        features=tmp_path / "spoilt.safetensors",
        tuning=two_epochs.model_copy(update={"epochs": EPOCHS}),
    )
    with pytest.raises(RuntimeError, match=r"tuning: the loss is nan at epoch 3, step \d") as told:
        run(on, storage)
    # 17 items of two captions each.
    assert "in a batch of 34 captions" in str(told.value)
    listed = (storage / "progress.not_finite.txt").read_text("utf-8").splitlines()
    assert len(listed) == 34
    assert read_captions(job.captions, CATEGORIES)[5].text in listed
    assert len(json.loads((storage / "progress.json").read_bytes())) == 2
    checkpoints = (storage / "run").glob("checkpoint_*/state.pt")
    kept = [torch.load(state, weights_only=True)["history"] for state in checkpoints]
    assert max(kept, key=len) == history, "the last good checkpoint"


def test_waiting_names_what_is_lacking(
    job: TuningJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_worker, "SECONDS_BETWEEN_WAITS", 0.5)
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(taken.ready())
    lacking: list[Lack] = []

    def on_waiting(seconds: float, lack: Lack) -> None:
        lacking.append(lack)
        if lacking.count("resources") == 2:
            remove_placement_group(taken)

    settings = job.tuning.model_copy(update={"epochs": 1})
    one_epoch = replace(job, tuning=settings, progress=tmp_path / "waited" / "progress.json")
    tune(one_epoch, tmp_path / "waited", "run", HALF_A_CPU, lambda _: None, on_waiting)
    assert lacking.count("resources") >= 2
    assert lacking[-1] == "processes"


def _kill_a_worker(progress: Path, killed_at: list[int]) -> None:
    """SIGKILL one of the two workers once two epochs are done."""
    while not killed_at:
        time.sleep(0.01)
        epochs = len(json.loads(progress.read_bytes())) if progress.exists() else 0
        if epochs < 2:
            continue
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                os.kill(process.pid, signal.SIGKILL)
                killed_at.append(epochs)
                return
