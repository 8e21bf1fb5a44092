"""The quickstart on a small scale, with the real embedded language model and real scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_quickstart_on_a_small_scale(tmp_path: Path, stamps: Path, lasting_cache: Path) -> None:
    small = ("per_category=8", "relationships=88")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator", "run", str(ROOT / "configs/quickstart.yaml")),
            *("--cache", str(lasting_cache), "--runs", str(tmp_path)),
            *(part for each in small for part in ("--set", f"knowledge.questions.{each}")),
            *("--set", "evaluation.scenes.images=132", "--set", "seeds=[0]"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "quickstart"
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert metrics["images"] == 132
    assert metrics["map"]["zero_shot"]["fused"] > 8 * metrics["chance_map"]
    # A fifth of the sentences makes no gain; prompts that were broken would lose far more.
    assert metrics["map"]["tuned"]["fused"] > metrics["map"]["zero_shot"]["fused"] - 3
    report = (run / "report.html").read_text("utf-8")
    assert "not CLIP" in report
    assert report.count("data:image/jpeg") == 12
