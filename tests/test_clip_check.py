"""`datafree doctor --verify-clip`: the real stages on a made-up VOC 2007 and a tiny CLIP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from test_clip import random_model
from test_datasets import write_voc

from orchestrator.evaluate.clip_check import RN50, _report, verify_clip
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.datasets import voc
from prompt_tuning.images import open_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images, each of two classes, one object of them difficult."""
    values = {
        f"{i:06d}": {voc.CLASSES[i]: 1, voc.CLASSES[(7 * i + 3) % 20]: 1, voc.CLASSES[19 - i]: 0}
        for i in range(12)
    }
    write_voc(tmp_path, "2007", "test", values)
    drawn = np.random.default_rng(0)
    for file in sorted((tmp_path / "VOCdevkit/VOC2007/JPEGImages").iterdir()):
        coarse = Image.fromarray(drawn.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((90, 70)).save(file, quality=95)
    return tmp_path


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield
    assert not ray.is_initialized()


def expected_map(vlm: VLM, root: Path) -> float:
    """By its own way: devkit names, cosines, and a 0 in the lists means not shown."""
    base = root / "VOCdevkit" / "VOC2007"
    ids = (base / "ImageSets/Main/test.txt").read_text().split()
    images = [vlm.preprocess(open_image(base / "JPEGImages" / f"{i}.jpg")) for i in ids]
    texts = F.normalize(vlm.encode_text([f"a photo of a {name}." for name in voc.CLASSES]), dim=-1)
    scores = (vlm.encode_image(torch.stack(images)).pooled.half().float() @ texts.T).numpy()
    aps = []
    for c, name in enumerate(voc.CLASSES):
        lines = (base / "ImageSets/Main" / f"{name}_test.txt").read_text().splitlines()
        shown = np.array([line.split()[1] == "1" for line in lines])
        if shown.any():
            aps.append(average_precision_score(shown, scores[:, c]))
    return 100 * float(np.mean(aps))


@pytest.fixture
def checkpoint(tmp_path: Path) -> VLMSettings:
    """The smallest CLIP whose towers open_clip knows by name in every process, random weights."""
    save_file(random_model("ViT-S-32-alt").state_dict(), tmp_path / "clip.safetensors")
    return VLMSettings(
        kind="open_clip",
        model="ViT-S-32-alt",
        pretrained=str(tmp_path / "clip.safetensors"),
        quick_gelu=False,
        resolution=224,
    )


@pytest.mark.usefixtures("no_cluster")
def test_the_figure_is_that_of_the_protocol(
    checkpoint: VLMSettings, root: Path, tmp_path: Path
) -> None:
    console = Console(record=True, width=200)
    assert not verify_clip(checkpoint, root, str(tmp_path / "cache"), console)
    printed = console.export_text()
    figure = re.search(r"ours +([0-9.]+) mAP", printed)
    assert figure, printed
    expected = expected_map(load_vlm(checkpoint), root)
    assert float(figure[1]) == pytest.approx(expected, abs=0.051)
    assert re.search(r"published +75\.9", printed)
    assert re.search(r"images +12, and the published figure is of 4,952", printed)
    assert "off by more than 0.5" in printed


@pytest.mark.parametrize(
    ("figure", "near", "difference"),
    [(75.44, True, "−0.5"), (75.34, False, "−0.6"), (76.4, True, "+0.5"), (79.7, False, "+3.8")],
)
def test_half_a_point_is_near(figure: float, near: bool, difference: str) -> None:
    console = Console(record=True, width=200)
    maps = {"global": figure, "local": 70.0, "fused": 80.0}
    assert _report(RN50, maps, 4952, console) == near
    printed = console.export_text()
    assert f"difference  {difference}\n" in printed
    assert ("off by" in printed) != near
    assert "is of 4,952" not in printed


def doctor(*arguments: str | Path, hub: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(hub), "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )


def test_what_is_missing_is_one_line(root: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "empty", "VOC 2007 is at"), (root, "cannot be downloaded")):
        folder.mkdir(exist_ok=True)
        done = doctor("--verify-clip", folder, "--cache", tmp_path / "cache", hub=tmp_path / "hub")
        assert done.returncode == 2, done.stderr
        assert "--verify-clip: " in done.stderr and words in done.stderr
        assert done.stderr.count("\n") == 1
