"""Sweeps through the command line, also on a cluster that loses a driver, a worker and a node.

Each trial has two workers, and points are ranked on images.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from child_processes import child_processes
from PIL import Image, ImageDraw
from ray.cluster_utils import Cluster

from prompt_tuning.tagging.artifact import Artifact

CATEGORIES = ["dog", "bicycle", "violin", "lemon"]
LOOKS = ["small", "large", "brown", "old", "bright", "strange", "new", "wet"]
PLACES = ["in the park", "near a wall", "on the grass", "by the road"]
EPOCHS = 14
# The stages before tuning, which one sweep may copy from another.
SHARED = (
    "caption_features",
    "hierarchy",
    "image_features",
    "imagenet_anchors",
    "images",
    "knowledge",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labels, sentences and 40 labelled images; one point beside the default."""
    folder = tmp_path_factory.mktemp("own")
    draws = random.Random(0)
    sentences = [
        f"A {look} {name} stands {place}.\t{name}"
        for name in CATEGORIES
        for look in LOOKS
        for place in PLACES
    ]
    (folder / "sentences.tsv").write_text("\n".join(sentences), "utf-8")
    (folder / "photos").mkdir()
    rows = []
    for i in range(40):
        image = Image.new("RGB", (120, 90), tuple(draws.randrange(256) for _ in range(3)))
        ImageDraw.Draw(image).ellipse((20, 20, 40 + i, 60), fill="yellow")
        image.save(folder / "photos" / f"{i}.png")
        rows.append(f"{i}.png,{CATEGORIES[i % 4]};{CATEGORIES[(i * 3 + i // 4) % 4]}")
    (folder / "photos" / "labels.csv").write_text("\n".join(rows), "utf-8")
    settings = {
        "name": "own",
        "categories": CATEGORIES,
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"files": ["sentences.tsv"], "held_out": 0.2},
        "hierarchy": {"groups": "auto", "coarse": 1, "fine": 2},
        "vlm": {"model": "efficientnet-lite0+minilm", "resolution": 224},
        # Tokens, because they are tuned slowly enough to be interrupted.
        "prompts": {"global_branch": {"learn": "tokens"}, "local_branch": {"learn": "tokens"}},
        "tuning": {"epochs": EPOCHS, "batch": 64, "captions_per_item": 2, "workers": 2},
        "evaluation": {
            "dataset": "folder",
            "root": str(folder / "photos"),
            "select_on": "evaluation",
        },
        "sweep": {"space": {"losses.order": {"grid": [1]}}},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return path


def command(config: Path, folder: Path, *options: str) -> list[str]:
    paths = ("--cache", str(folder / "cache"), "--runs", str(folder / "runs"))
    return [sys.executable, "-m", "orchestrator", "sweep", str(config), *paths, *options]


def run(config: Path, folder: Path, *options: str) -> str:
    done = subprocess.run(
        command(config, folder, *options), capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(
    config: Path, new_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a sweep without failures, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    new_cache(folder / "cache")
    return folder, run(config, folder)


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.parquet without times."""
    rows = pq.read_table(folder / "runs" / "own" / "results.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k != "tuning_seconds"} for row in rows]


def tuned(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache" / "tuning").iterdir()}


def test_a_sweep_leaves_a_table_a_page_and_the_best_artifact(
    undisturbed: tuple[Path, str],
) -> None:
    folder, printed = undisturbed
    rows = table(folder)
    assert [row["losses.order"] for row in rows] == [0.2, 1], "the default comes first"
    assert {row["status"] for row in rows} == {"finished"}
    assert all(row["objective"] == row["selecting_map"] > 0 for row in rows)
    best = max(rows, key=lambda row: row["objective"])
    assert f"losses.order={best['losses.order']:g}" in printed
    left = folder / "runs" / "own"
    artifact = Artifact.load(left / "best")
    assert list(artifact.categories.names) == CATEGORIES
    run_config = yaml.safe_load((left / "best-run" / "config.yaml").read_text("utf-8"))
    assert run_config["losses"]["order"] == best["losses.order"]
    # The reported images are not those that ranked the points.
    selection = json.loads((left / "best-run" / "selection.json").read_bytes())
    metrics = json.loads((left / "best-run" / "metrics.json").read_bytes())
    assert len(selection["selecting"]) == metrics["images"] == 20
    page = (left / "report.html").read_text("utf-8")
    assert "losses.order" in page
    events = list((left / "tensorboard").glob("*/events.out.tfevents.*"))
    assert len(events) == len(rows)


@pytest.mark.slow
def test_a_wider_space_runs_only_its_new_points(
    config: Path, undisturbed: tuple[Path, str]
) -> None:
    folder, _ = undisturbed
    before = {key: (folder / "cache/tuning" / key).stat().st_mtime_ns for key in tuned(folder)}
    printed = run(config, folder, "--set", "sweep.space={losses.order: {grid: [0.5, 1]}}")
    assert "trials: 1 to do" in printed
    assert len(tuned(folder)) == len(before) + 1
    for key, written in before.items():
        assert (folder / "cache/tuning" / key).stat().st_mtime_ns == written
    again = run(config, folder)
    assert "to do" not in again
    assert [row["losses.order"] for row in table(folder)] == [0.2, 1]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes with a CPU each, and a head without."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def start(config: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(config, folder, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )


def epochs(folder: Path) -> int:
    """How many epochs of unfinished trials have been written down."""
    files = (folder / "runs" / "own" / ".ray").rglob("*.progress.json")
    return sum(len(json.loads(file.read_bytes())) for file in files)


def a_worker() -> psutil.Process:
    """One of the processes that tune."""
    return next(child_processes("RayTrainWorker"))


@pytest.mark.slow
def test_a_sweep_with_asha_that_loses_a_worker_ends_with_the_same_table(
    config: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    shared, _ = undisturbed
    # Tuning does harm on these images: the second point is stopped at the only rung, and the last
    # is as good as the first.
    space = "sweep.space={tuning.lr: {grid: [0.01, 1.1e-7]}}"
    asha = "sweep.asha={grace: 2, reduction: 20}"
    sets = ["--set", "tuning.lr=1e-7", "--set", space, "--set", asha]
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    for folder in (whole, disturbed):
        for name in SHARED:
            shutil.copytree(shared / "cache" / name, folder / "cache" / name)
    run(config, whole, *sets)
    assert [row["status"] for row in table(whole)] == ["finished", "stopped", "finished"]
    process = start(config, disturbed, *sets)
    begun: list[Path] = []

    def the_last_has_done_five_epochs() -> bool:
        files = (disturbed / "runs" / "own" / ".ray").rglob("*.progress.json")
        begun.extend(file for file in files if file not in begun)
        return len(begun) == 3 and len(json.loads(begun[2].read_bytes())) >= 5

    # In the last trial, whose slot no other trial can take meanwhile.
    wait_for(the_last_has_done_five_epochs, process)
    max(child_processes("RayTrainWorker"), key=psutil.Process.create_time).kill()
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    assert table(disturbed) == table(whole)


@pytest.mark.parametrize("worker_too", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_that_loses_its_driver_and_a_node_ends_with_the_same_table(
    config: Path,
    undisturbed: tuple[Path, str],
    cluster: Cluster,
    tmp_path: Path,
    worker_too: bool,
) -> None:
    """`worker_too`: a worker is killed before its node, which takes another with it, is lost."""
    whole, _ = undisturbed
    for name in SHARED:
        shutil.copytree(whole / "cache" / name, tmp_path / "cache" / name)
    first = start(config, tmp_path)
    wait_for(lambda: epochs(tmp_path) >= 5, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = epochs(tmp_path)

    second = start(config, tmp_path)
    wait_for(lambda: epochs(tmp_path) > kept + 3, second)
    if worker_too:
        a_worker().kill()
        kept = epochs(tmp_path)
        wait_for(lambda: epochs(tmp_path) > kept + 3, second)
    worker = a_worker()
    raylet = worker.parent()
    assert raylet
    node = next(
        node
        for node in cluster.worker_nodes
        if node.all_processes["raylet"][0].process.pid == raylet.pid
    )
    cluster.remove_node(node, allow_graceful=False)
    printed, _ = second.communicate(timeout=500)
    assert second.returncode == 0, printed
    assert not re.search("Traceback|failed:", printed), printed
    assert table(tmp_path) == table(whole)
