"""Failures of the system are told with their root cause first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError
from tiny_llm import write_tiny_llm

from workers.failure import describe

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
categories: [dog, car, tree]
knowledge: {{questions: {{per_category: {questions}, relationships: 0}}, llm: {{model: {llm}}}}}
captions: {{files: [own.tsv], held_out: 0.3}}
hierarchy: {{groups: auto, coarse: 2, fine: 2}}
vlm: {{model: efficientnet-lite0+minilm, resolution: 224}}
"""


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_the_first_error_of_a_chain_comes_first() -> None:
    try:
        try:
            raise OSError("no space left on device")
        except OSError as error:
            raise RuntimeError("the stage failed") from error
    except RuntimeError as error:
        told = describe(error)
    assert told.startswith("failed: OSError: no space left on device\n")
    assert "the stage failed" in told


def test_what_was_suppressed_is_no_cause() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise RuntimeError("the model cannot be loaded") from None
    except RuntimeError as error:
        told = describe(error)
    assert told.startswith("failed: RuntimeError: the model cannot be loaded\n")


def test_the_worker_that_failed_comes_before_those_that_lost_it() -> None:
    failure = RuntimeError("training failed")
    lost = raised(RuntimeError("Connection closed by peer [127.0.0.1]"))
    own = raised(FloatingPointError("the loss is nan at epoch 2, step 3"))
    failure.worker_failures = {0: lost, 1: own}  # type: ignore[attr-defined]
    assert describe(failure).startswith("failed: FloatingPointError: the loss is nan at epoch 2")


def test_too_little_memory_is_described_in_one_line_without_rays_page() -> None:
    page = "1 worker(s) were killed due to the node running low on memory. Memory on the node …\n"
    failure = RuntimeError("training failed")
    failure.worker_failures = {0: OutOfMemoryError(page)}  # type: ignore[attr-defined]
    line = describe(failure)
    assert line.startswith("failed: out of memory: Ray ended a worker")
    assert "tuning.workers" in line
    assert "\n" not in line


# Questions are for engines, which are actors; without any, tasks encode the captions.
@pytest.mark.parametrize("questions", [0, 40])
def test_a_run_whose_workers_ray_ends_for_lack_of_memory_says_so(
    tmp_path: Path, questions: int
) -> None:
    llm = write_tiny_llm(tmp_path / "llm")
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(questions=questions, llm=llm), "utf-8")
    names = ("dog", "car", "tree")
    lines = (f"A {look} {name}.\t{name}\n" for name in names for look in ("large old", "small red"))
    (tmp_path / "own.tsv").write_text("".join(lines), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "RAY_memory_usage_threshold": "0.01",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "tiny.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("failed: out of memory: Ray ended a worker")
    assert done.stderr.count("\n") == 1
    assert "low on memory" not in done.stdout
