"""A whole small run through the command line, undisturbed and killed three times: equal bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw
from tiny_llm import write_tiny_llm

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
        "tuning": {"epochs": 5, "batch": 32, "workers": 2},
        "evaluation": {"dataset": "folder", "root": "photos"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder / "own.yaml"


def command(config: Path, place: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "orchestrator", "run", str(config)),
        *("--cache", str(place / "cache"), "--runs", str(place / "runs")),
    ]


def run(config: Path, place: Path) -> str:
    done = subprocess.run(command(config, place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_and_kill(config: Path, place: Path, when: Callable[[], bool]) -> None:
    """Start a run and SIGKILL its whole process group as soon as `when` holds."""
    process = subprocess.Popen(
        command(config, place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not when():
        assert process.poll() is None, "the run ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def results(place: Path) -> dict[str, bytes]:
    """What must not differ: everything in the run's folder but timings and paths."""
    folder = place / "runs" / "own"
    names = ["metrics.json", *(f"artifact/{p.name}" for p in (folder / "artifact").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.timeout(1800)
def test_killed_run_goes_on_to_the_same_bytes(config: Path, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run(config, calm)
    metrics = json.loads((calm / "runs/own/metrics.json").read_text("utf-8"))
    assert metrics["images"] == 100
    untuned = {"zero_shot", "templates", "synonym_average", "caption_average"}
    assert set(metrics["map"]) == {*untuned, "tuned"}
    assert len(metrics["map_by_seed"]["tuned"]["fused"]) == 2
    assert {p.name for p in (calm / "runs/own").iterdir()} >= {
        *("config.yaml", "run.json", "metrics.json", "artifact", "report.html")
    }

    cache = killed / "cache"
    run_and_kill(config, killed, lambda: len(list(cache.glob("answers/*/[0-9a-f]*"))) >= 2)
    answered = {p.name for p in cache.glob("answers/*/[0-9a-f]*")}
    assert not list(cache.glob("knowledge/*/manifest.json"))
    run_and_kill(config, killed, lambda: any(_epochs(p) >= 2 for p in _progress_files(killed)))
    assert not list(cache.glob("tuning/*/manifest.json"))
    run_and_kill(config, killed, lambda: bool(list(cache.glob("parts/image_features-*/[0-9]*"))))
    assert not list(cache.glob("image_features/*/manifest.json"))
    output = run(config, killed)
    assert "Done before: knowledge" in output
    assert {p.name for p in cache.glob("answers/*/[0-9a-f]*")} >= answered
    assert results(killed) == results(calm)

    assert "Nothing to do" in run(config, killed)
    assert results(killed) == results(calm)


def _progress_files(place: Path) -> list[Path]:
    return list((place / "runs/own/.ray").glob("*.progress.json"))


def _epochs(progress: Path) -> int:
    return len(json.loads(progress.read_bytes()))
