"""Ray Train with two real workers: as one worker would, and the same after a worker is killed."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from child_processes import child_processes
from ray.util.placement_group import placement_group, remove_placement_group

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.captions import Caption, CaptionWriter, captions_at
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.selection import SelectingHalf
from prompt_tuning.features import StoredFeatures, save_features, shard_file
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.tuning.caption_set import caption_labels, load_caption_sets
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import TuningRun
from workers.tuning import driver
from workers.tuning.driver import tune
from workers.tuning.job import DistributedTuningSettings, Lack, Tuned, TuningJob

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
    for start in range(0, len(captions), 25):
        rows = torch.arange(start, min(start + 25, len(captions)))
        save_features(shard_file(new_folder(tmp_path / "features"), start), features.take(rows))
    return TuningJob(
        captions=tmp_path / "captions.parquet",
        features=tmp_path / "features",
        held_out=0.2,
        categories=CATEGORIES,
        hierarchy=HIERARCHY,
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
            tmp_path / "features",
            np.arange(0, len(captions), 3),
            caption_labels(captions, len(NAMES))[::3].numpy(),
            None,
        ),
    )


def new_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def without_times(reported: list[dict[str, float]]) -> list[dict[str, float]]:
    """What is reported of the epochs, without what no history has."""
    others = ("at", "started", "selecting_map")
    return [{k: v for k, v in entry.items() if k not in others} for entry in reported]


def run(*jobs: TuningJob, storage: Path) -> list[Tuned]:
    """Tune jobs one after the other; each has its progress in a file named by its seed."""
    jobs = tuple(replace(job, progress=storage / f"progress{job.seed}.json") for job in jobs)
    reported: dict[str, list[dict[str, float]]] = {job.name: [] for job in jobs}

    def on_epoch(job: TuningJob, entry: dict[str, float]) -> None:
        reported[job.name].append(entry)

    tuned = tune(jobs, storage, "run", HALF_A_CPU, on_epoch, on_waiting=lambda seconds, lack: None)
    for job, of_job in zip(jobs, tuned, strict=True):
        assert without_times(reported[job.name]) == of_job.history, "each epoch is reported once"
        assert all(entry["started"] < entry["at"] for entry in reported[job.name])
        assert all(entry["selecting_map"] > 0 for entry in reported[job.name])
    return tuned


def test_two_workers_tune_as_one_process_does_and_survive_a_kill(
    job: TuningJob, embedded_vlm: VLM, tmp_path: Path
) -> None:
    """Two seeds, which the same workers tune one after the other: each comes out as it does alone,
    the second even though a worker is killed in the middle of it."""
    other = replace(job, seed=1)
    killed_at: list[int] = []
    killer = threading.Thread(
        target=_kill_a_worker, args=(tmp_path / "both" / "progress1.json", killed_at), daemon=True
    )
    killer.start()
    both = run(job, other, storage=tmp_path / "both")
    assert killed_at and killed_at[0] < EPOCHS, "no worker was killed in the middle"
    for tuned in both:
        assert [entry["epoch"] for entry in tuned.history] == list(range(1, EPOCHS + 1))
        assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
        assert tuned.classes["global"].shape == tuned.classes["local"].shape == (len(NAMES), 384)
    first, second = both
    assert not torch.equal(first.classes["global"], second.classes["global"])

    (undisturbed,) = run(other, storage=tmp_path / "undisturbed")
    assert second.history == undisturbed.history
    for name, values in undisturbed.classes.items():
        assert torch.equal(second.classes[name], values), name

    prompts = ClassPrompts(
        embedded_vlm, CATEGORIES, HIERARCHY, job.prompts, job.scoring, job.losses, job.seed
    )
    captions = load_caption_sets(job.captions, job.features, CATEGORIES, job.held_out)
    without_ray = TuningRun(prompts, prompts, *captions, job.tuning, job.seed)
    for _ in range(EPOCHS):
        without_ray.run_epoch()
    for branch, classes in without_ray.best_class_features().items():
        assert torch.allclose(classes, first.classes[branch], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_batch(
    job: TuningJob, tmp_path: Path
) -> None:
    features = StoredFeatures(job.features).take(torch.arange(60))
    features.pooled[5] = math.nan
    save_features(shard_file(new_folder(tmp_path / "spoilt"), 0), features)
    tuning = job.tuning.model_copy(update={"epochs": 2, "workers": 1})
    good = replace(job, tuning=tuning)
    bad = replace(good, seed=1, features=tmp_path / "spoilt")
    storage = tmp_path / "not finite"
    with pytest.raises(
        RuntimeError, match=r"tuning: the loss is nan at epoch 1, step \d"
    ) as raised:
        run(good, bad, storage=storage)
    # 17 items of two captions each.
    assert "in a batch of 34 captions" in str(raised.value)
    listed = (storage / "progress1.not_finite.txt").read_text("utf-8").splitlines()
    assert len(listed) == 34
    assert captions_at(job.captions, CATEGORIES, [5])[5].text in listed
    epochs = (storage / "progress0.json").read_bytes()
    (kept,) = run(good, storage=storage)
    assert (storage / "progress0.json").read_bytes() == epochs, "a seed is not tuned twice"
    assert kept.history == without_times(json.loads(epochs))


def test_waiting_names_what_is_lacking(
    job: TuningJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SECONDS_BETWEEN_WAITS", 0.5)
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(taken.ready())
    lacking: list[Lack] = []

    def on_waiting(seconds: float, lack: Lack) -> None:
        lacking.append(lack)
        if lacking.count("resources") == 2:
            remove_placement_group(taken)

    settings = job.tuning.model_copy(update={"epochs": 1})
    one_epoch = replace(job, tuning=settings, progress=tmp_path / "waited" / "progress.json")
    tune([one_epoch], tmp_path / "waited", "run", HALF_A_CPU, lambda job, entry: None, on_waiting)
    assert lacking.count("resources") >= 2
    assert lacking[-1] == "processes"


def _kill_a_worker(progress: Path, killed_at: list[int]) -> None:
    """SIGKILL one of the two workers once two epochs are done."""
    while not killed_at:
        time.sleep(0.01)
        epochs = len(json.loads(progress.read_bytes())) if progress.exists() else 0
        if epochs < 2:
            continue
        for process in child_processes("RayTrainWorker"):
            process.kill()
            killed_at.append(epochs)
            return
