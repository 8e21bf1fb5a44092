"""A whole small run through the command line, undisturbed and stopped: equal bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from child_processes import interrupt, wait_until
from PIL import Image, ImageDraw
from test_curves import HISTORY, expected, read_curves
from tiny_llm import write_tiny_llm

from orchestrator.runs.curves import curves_folder, new_curves

CATEGORIES = ["dog", "bicycle", "violin", "lemon", "car", "tree"]
PLACES = ["in the park", "near a wall", "on the grass", "by the road", "at home", "in the sun"]
LOOKS = ["small", "large", "brown", "old", "bright", "strange", "new", "wet"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own: 6 labels, sentences from a file, 100 labelled images, a tiny LLM."""
    folder = tmp_path_factory.mktemp("own")
    write_tiny_llm(folder / "llm")
    draws = random.Random(0)
    sentences = []
    for name in CATEGORIES:
        for look in LOOKS:
            other = draws.choice([c for c in CATEGORIES if c != name])
            place = draws.choice(PLACES)
            sentences.append(f"A {look} {name} stands {place}.\t{name}")
            sentences.append(f"A {look} {name} and a {other} {place}.\t{name};{other}")
    (folder / "sentences.tsv").write_text("\n".join(sentences), "utf-8")
    (folder / "photos").mkdir()
    rows = []
    for i in range(100):
        image = Image.new("RGB", (120, 90), tuple(draws.randrange(256) for _ in range(3)))
        ImageDraw.Draw(image).ellipse((20, 20, 40 + i % 40, 60), fill="yellow")
        image.save(folder / "photos" / f"{i}.png")
        rows.append(f"{i}.png,{CATEGORIES[i % 6]};{CATEGORIES[(i * 7 + 1) % 6]}")
    (folder / "photos" / "labels.csv").write_text("\n".join(rows), "utf-8")
    settings = {
        "name": "own",
        "seeds": [0, 1],
        "categories": CATEGORIES,
        "knowledge": {
            "llm": {"model": str(folder / "llm"), "max_num_seqs": 32},
            "questions": {"per_category": 70, "relationships": 10},
            "sampling": {"max_tokens": 16},
        },
        "captions": {"files": ["sentences.tsv"], "held_out": 0.2},
        "hierarchy": {"groups": "auto", "coarse": 2, "fine": 3},
        "vlm": {"model": "efficientnet-lite0+minilm", "resolution": 224},
        # Tokens, because they are tuned slowly enough to be interrupted.
        "prompts": {"global_branch": {"learn": "tokens"}, "local_branch": {"learn": "tokens"}},
        "tuning": {"epochs": 5, "batch": 32, "captions_per_item": 2, "workers": 2},
        "evaluation": {"dataset": "folder", "root": "photos"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder / "own.yaml"


def start(config: Path, place: Path) -> subprocess.Popen[str]:
    """Start the run in a process group of its own."""
    arguments = [
        *(sys.executable, "-m", "orchestrator", "run", str(config)),
        *("--cache", str(place / "cache"), "--runs", str(place / "runs")),
    ]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(config: Path, place: Path) -> str:
    process = start(config, place)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return output


def results(place: Path) -> dict[str, bytes]:
    """What must not differ: everything in the run's folder but timings and paths."""
    folder = place / "runs" / "own"
    names = ["metrics.json", *(f"artifact/{p.name}" for p in (folder / "artifact").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def calm(
    config: Path, new_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that nothing has stopped."""
    place = tmp_path_factory.mktemp("calm")
    new_cache(place / "cache")
    run(config, place)
    return place


def test_a_run_leaves_its_figures_and_an_artifact(calm: Path) -> None:
    metrics = json.loads((calm / "runs/own/metrics.json").read_text("utf-8"))
    assert metrics["images"] == 100
    untuned = {"zero_shot", "templates", "synonym_average", "caption_average"}
    assert set(metrics["map"]) == {*untuned, "tuned"}
    assert len(metrics["map_by_seed"]["tuned"]["fused"]) == 2
    assert {p.name for p in (calm / "runs/own").iterdir()} >= {
        *("config.yaml", "run.json", "metrics.json", "artifact", "report.html")
    }


def test_curves_are_of_this_run_also_if_its_stages_are_cached(config: Path, calm: Path) -> None:
    folder = calm / "runs/own"
    stages = json.loads((folder / "run.json").read_text("utf-8"))["stages"]
    histories = []
    for seed in (0, 1):
        key = stages[f"tuning, seed {seed}"]["key"]
        histories.append(json.loads((calm / f"cache/tuning/{key}/history.json").read_bytes()))
        assert [entry["epoch"] for entry in histories[seed]] == [1, 2, 3, 4, 5]
        assert read_curves(curves_folder(folder, seed)) == expected(histories[seed])
    # Whatever was there before: half of a seed's curves, or those of a seed of another config.
    for seed in (0, 7):
        with new_curves(curves_folder(folder, seed)) as add_epoch:
            add_epoch(HISTORY[0])
    assert "Nothing to do" in run(config, calm)
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"seed-0", "seed-1"}
    for seed in (0, 1):
        assert read_curves(curves_folder(folder, seed)) == expected(histories[seed])


def answers(place: Path) -> set[str]:
    """Keys of the published shards of answers."""
    return {path.name for path in place.glob("cache/answers/*/[0-9a-f]*")}


def is_answering(place: Path, process: psutil.Process) -> bool:
    return len(answers(place)) >= 2


def is_tuning(place: Path, process: psutil.Process) -> bool:
    """Whether this process, and none before, has tuned two epochs."""
    files = place.glob("runs/own/.ray/*.progress.json")
    fresh = [file for file in files if file.stat().st_mtime > process.create_time()]
    return any(len(json.loads(file.read_bytes())) >= 2 for file in fresh)


def is_encoding_images(place: Path, process: psutil.Process) -> bool:
    return any(place.glob("cache/parts/image_features-*/[0-9]*"))


# By stage: whether it is under way, and the file that is there once it is finished.
STAGES = {
    "answering": (is_answering, "knowledge/*/manifest.json"),
    "tuning": (is_tuning, "tuning/*/manifest.json"),
    "encoding images": (is_encoding_images, "image_features/*/manifest.json"),
}


def stop(config: Path, place: Path, stage: str, number: signal.Signals) -> None:
    """Start the run and stop it in the middle of a stage; SIGKILL goes to its whole group."""
    under_way, finished = STAGES[stage]
    process = start(config, place)
    if number == signal.SIGKILL:
        wait_until(partial(under_way, place), process)
        os.killpg(process.pid, number)
        process.wait()
    else:
        output = interrupt(process, number, partial(under_way, place))
        assert "Stopped. The same command resumes from what is finished." in output
    assert not list((place / "cache").glob(finished))


@pytest.mark.timeout(1800)
def test_a_run_that_is_interrupted_while_it_tunes_goes_on_to_the_same_bytes(
    config: Path, calm: Path, new_cache: Callable[[Path], Path], tmp_path: Path
) -> None:
    cache = new_cache(tmp_path / "cache")
    for stage in ("answers", "caption_features", "hierarchy", "knowledge"):
        shutil.copytree(calm / "cache" / stage, cache / stage)
    stop(config, tmp_path, "tuning", signal.SIGINT)
    assert "Done before: knowledge" in run(config, tmp_path)
    assert results(tmp_path) == results(calm)
    assert "Nothing to do" in run(config, tmp_path)
    assert results(tmp_path) == results(calm)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_stopped_in_every_stage_goes_on_to_the_same_bytes(
    config: Path, calm: Path, tmp_path: Path
) -> None:
    stop(config, tmp_path, "answering", signal.SIGKILL)
    answered = answers(tmp_path)
    stop(config, tmp_path, "tuning", signal.SIGTERM)
    stop(config, tmp_path, "tuning", signal.SIGKILL)
    stop(config, tmp_path, "encoding images", signal.SIGKILL)
    assert "Done before: knowledge" in run(config, tmp_path)
    assert answers(tmp_path) >= answered
    assert results(tmp_path) == results(calm)
