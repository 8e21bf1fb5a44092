"""Failures of the system are reported with their root cause first."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError
from tiny_llm import write_tiny_llm

from prompt_tuning.storage import naming
from workers.failure import DescribedFailure, describe

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
        text = describe(error)
    assert text.startswith("failed: OSError: no space left on device\n")
    assert "the stage failed" in text


def test_what_was_suppressed_is_no_cause() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise RuntimeError("the model cannot be loaded") from None
    except RuntimeError as error:
        text = describe(error)
    assert text.startswith("failed: RuntimeError: the model cannot be loaded\n")


def test_the_worker_that_failed_comes_before_those_that_lost_it() -> None:
    failure = RuntimeError("training failed")
    lost = raised(RuntimeError("Connection closed by peer [127.0.0.1]"))
    own = raised(FloatingPointError("the loss is nan at epoch 2, step 3"))
    failure.worker_failures = {0: lost, 1: own}  # type: ignore[attr-defined]
    assert describe(failure).startswith("failed: FloatingPointError: the loss is nan at epoch 2")


def caught(action: Callable[[], object]) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_of_files_and_of_what_describes_itself_one_line_is_enough(tmp_path: Path) -> None:
    gone = tmp_path / "gone.tsv"
    for action in (gone.read_text, gone.unlink):
        assert describe(caught(action)) == f"failed: {gone}: No such file or directory"
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "file").touch()
    for move, named in (
        (lambda: gone.replace(tmp_path / "file"), f"{gone}: No such file or directory"),
        (lambda: (tmp_path / "file").replace(there), f"{there}: Is a directory"),
    ):
        assert describe(caught(move)) == f"failed: {named}"
    failure = RuntimeError("the stage failed")
    failure.__cause__ = caught(gone.read_text)
    assert describe(failure) == f"failed: {gone}: No such file or directory"
    assert describe(raised(DescribedFailure("no room"))) == "failed: no room"
    assert "Traceback" in describe(raised(OSError("of no file")))


def test_what_went_wrong_after_a_missing_file_keeps_its_traceback(tmp_path: Path) -> None:
    later = KeyError("and then")
    later.__context__ = caught((tmp_path / "optional").read_text)
    assert "KeyError: 'and then'" in describe(later)


def test_a_name_is_given_to_what_has_none_and_travels(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full, naming(tmp_path):
        raise OSError(28, "No space left on device")
    assert describe(full.value) == f"failed: {tmp_path}: No space left on device"
    assert describe(pickle.loads(pickle.dumps(full.value))) == describe(full.value)
    with pytest.raises(OSError, match="refused"), naming(tmp_path):
        raise ConnectionRefusedError(111, "refused")


WRITE = """
import sqlite3, sys
from pathlib import Path
import numpy, pyarrow, torch
from pyarrow import parquet
from safetensors.torch import save_file
from prompt_tuning.storage import copy_atomic, publishing, write_atomic
from workers.failure import describe

folder, large = Path(sys.argv[1]), torch.zeros(2_000_000)

def sqlite(file):
    with sqlite3.connect(file) as base:
        base.execute("create table t (a)")
        base.executemany("insert into t values (?)", [("x" * 1000,)] * 3000)

def published(write):
    with publishing(folder / "stage") as staging:
        write(staging / "file")

for write in (
    lambda file: save_file({"a": large}, file),
    lambda file: torch.save(large, file),
    lambda file: numpy.savez(file, a=large),
    lambda file: parquet.write_table(pyarrow.table({"a": numpy.random.rand(500_000)}), file),
    lambda file: file.write_text("x" * 3_000_000),
    sqlite,
):
    try:
        published(write)
    except Exception as error:
        print(describe(error))
for write in (write_atomic, lambda to, data: copy_atomic(Path(sys.argv[2]), to)):
    try:
        write(folder / "file", bytes(3_000_000))
    except Exception as error:
        print(describe(error))
"""


def test_a_full_disk_is_one_line_that_names_the_file_whatever_wrote_it(tmp_path: Path) -> None:
    folder, large = tmp_path / "full", tmp_path / "large"
    folder.mkdir()
    large.write_bytes(bytes(3_000_000))
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')
    if subprocess.run([*mount, str(folder), "true"], check=False).returncode:
        pytest.skip("this process may not mount")
    written = subprocess.run(
        [*mount, str(folder), sys.executable, "-c", WRITE, str(folder), str(large)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    named = [f"{folder}/stage"] * 6 + [f"{folder}/file"] * 2
    expected = [f"failed: {name}: No space left on device" for name in named]
    assert written.stdout.splitlines() == expected, written.stderr


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
