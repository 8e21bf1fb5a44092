"""`datafree knowledge` as a person runs it: real processes, a real vLLM engine, a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tiny_llm import write_tiny_llm

from workers.knowledge.engine_dtype import native_dtype

CATEGORIES = ["dog", "bicycle", "violin", "lemon", "car", "tree"]
RESULTS = ["answers.parquet", "captions.parquet", "lists.json", "summary.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knowledge")
    write_tiny_llm(folder / "llm")
    (folder / "own.tsv").write_text("My dog sleeps.\tdog\nA car by a tree.\n", "utf-8")
    return folder


def write_config(folder: Path, name: str, categories: list[str], **questions: object) -> Path:
    config = {
        "name": name,
        "categories": categories,
        "knowledge": {
            "llm": {"model": "llm", "max_num_seqs": 32, "max_model_len": 1024},
            "questions": {"per_category": 200, "relationships": 12, "attributes": 6, **questions},
            "sampling": {"max_tokens": 6},
        },
        "captions": {"files": ["own.tsv"]},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return folder / f"{name}.yaml"


def command(config: Path, place: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "orchestrator", "knowledge", str(config), *options),
        *("--cache", str(place / "cache"), "--runs", str(place / "runs")),
    ]


def run(config: Path, place: Path, *options: str, expect: int = 0) -> str:
    done = subprocess.run(
        command(config, place, *options), capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


def shards(place: Path) -> set[str]:
    """Keys of the shards that are published."""
    return {
        path.parent.name for path in (place / "cache/answers").glob("*/[0-9a-f]*/manifest.json")
    }


def results(place: Path, name: str) -> dict[str, bytes]:
    return {file: (place / "runs" / name / "knowledge" / file).read_bytes() for file in RESULTS}


@pytest.fixture(scope="module")
def calm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("calm")
    run(write_config(folder, "own", CATEGORIES), place)
    return place


def test_everything_asked_is_answered_and_accounted_for(folder: Path, calm: Path) -> None:
    knowledge = calm / "runs/own/knowledge"
    summary = json.loads((knowledge / "summary.json").read_bytes())
    asked = {"attributes": 8, "aspects": 12, "kinds": 24, "classes": 12, "together": 24}
    assert summary["asked"] == {**asked, "specific": 1200, "relationship": 12}
    assert summary["dtype"] == native_dtype(on_gpu=False)
    answers = pq.read_table(knowledge / "answers.parquet").to_pylist()
    assert len(answers) == 1212
    assert len({row["answer"] for row in answers}) > 900
    kept = pq.read_table(knowledge / "captions.parquet").to_pylist()
    assert [(row["text"], row["labels"], row["kind"]) for row in kept[:2]] == [
        ("My dog sleeps.", ["dog"], "file"),
        ("A car by a tree.", ["car", "tree"], "file"),
    ]
    assert len(kept) == sum(summary["kept"].values())
    assert sum(summary["dropped"].values()) == 1212 - len(kept) + 2
    assert summary["captions_per_category"]["dog"] >= 1
    before = results(calm, "own")
    assert "Nothing to do" in run(folder / "own.yaml", calm)
    assert results(calm, "own") == before


@pytest.mark.slow  # test_knowledge_faults kills one among engines that load at once
def test_a_killed_driver_goes_on_to_the_same_bytes(
    folder: Path, calm: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(folder / "own.yaml", tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while len(shards(tmp_path)) < 6:
        assert process.poll() is None, "the run ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    answered = {key: _modified(tmp_path, key) for key in shards(tmp_path)}
    run(folder / "own.yaml", tmp_path)
    assert results(tmp_path, "own") == results(calm, "own")
    assert {key: _modified(tmp_path, key) for key in answered} == answered
    assert shards(tmp_path) == shards(calm)


def _modified(place: Path, key: str) -> int:
    return (place / "cache/answers" / key[:2] / key / "answers.parquet").stat().st_mtime_ns


def test_another_category_asks_only_its_own_shards_again(folder: Path, calm: Path) -> None:
    before = shards(calm)
    run(write_config(folder, "longer", ["whale", *CATEGORIES]), calm)
    new = shards(calm) - before
    # One of each list, and of either kind of sentence.
    assert 0 < len(new) <= 6
    assert len(before) > 8


def test_a_question_that_cannot_be_answered_is_named_and_the_rest_kept(
    folder: Path, calm: Path
) -> None:
    long = {"kind": "relationship", "instruction": "{names}", "heading": "x" * 1200}
    template = {"endless": {**long, "line": "{names}:", "examples": []}}
    (folder / "templates.yaml").write_text(yaml.safe_dump(template), "utf-8")
    config = write_config(
        folder, "poison", ["dog", "car"], templates="templates.yaml", relationships=2
    )
    output = run(config, calm)
    assert "warning: knowledge: 2 questions are in quarantine" in " ".join(output.split())
    summary = json.loads((calm / "runs/poison/knowledge/summary.json").read_bytes())
    assert summary["not_answered"] == 2
    assert {row["question"] for row in summary["quarantined"]} <= {
        *("dog:", "car:", "dog, car:", "car, dog:")
    }
    assert "1024" in summary["quarantined"][0]["reason"]
    assert summary["asked"]["specific"] == 400
    assert "2 questions are in quarantine" in run(config, calm, "--strict", expect=1)


def test_a_dry_run_prints_the_plan_and_starts_nothing(folder: Path, tmp_path: Path) -> None:
    output = run(write_config(folder, "plan", CATEGORIES), tmp_path, "--dry-run")
    assert "questions: 80 for category facts, 1212 for captions" in output
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "runs").exists()
