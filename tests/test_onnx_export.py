"""The ONNX file gives what the tagger gives, read by onnxruntime alone."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from test_clip import RESNET, TEXT, VIT, random_model

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.new_labels import TunedTokens
from prompt_tuning.tagging.onnx_export import export_onnx
from prompt_tuning.tagging.tagger import Tagger

_LACKING = [
    name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None
]
needs_onnx = pytest.mark.skipif(bool(_LACKING), reason=f"not installed: {', '.join(_LACKING)}")
NAMES = ("dog", "café", "hot air balloon")


def artifact_for(vlm: VLM) -> Artifact:
    """Random class features, with a sigmoid of its own for each."""
    drawn = torch.Generator().manual_seed(0)
    pooled, local = F.normalize(torch.randn(2, len(NAMES), vlm.dim, generator=drawn), dim=-1)
    return Artifact(
        categories=CategoryList(categories=tuple(Category(name=name) for name in NAMES)),
        tree={"all": {"all": list(NAMES)}},
        classes=ClassFeatures(pooled, local),
        tokens=TunedTokens({}, {"global": 1.0, "local": 1.0}),
        geometry=vlm.geometry,
        fusion="mean",
        calibration=Calibration(
            slopes=np.array([3.0, 5.0, 9.0]) / 7,
            offsets=np.array([-1.0, 0.0, 1.0]) / 7,
            thresholds=np.array([0.1, 0.2, 0.3]),
            shared=(0.5, -0.5, 0.25),
        ),
        vlm_settings=vlm.settings,
        vlm=vlm.identity,
    )


def tiny_clip(name: str, folder: Path, **image_side: Any) -> VLM:
    """A CLIP with random weights in which different images have different features."""
    folder.mkdir()
    vision = RESNET if "RN" in name else VIT
    quick_gelu = name.endswith("quickgelu")
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    model = random_model(name)
    if "RN" in name:  # norms with statistics that are not the network's make all images alike
        with torch.no_grad():
            model.visual.train()
            for _ in range(30):
                model.visual(torch.randn(8, 3, 64, 64))
    save_file(model.state_dict(), folder / "weights.safetensors")
    return load_vlm(
        VLMSettings(
            kind="open_clip",
            model=name,
            pretrained=str(folder / "weights.safetensors"),
            quick_gelu=quick_gelu,
            resolution=64 if "RN" in name else 32,
            **image_side,
        )
    )


def drawn_images(count: int) -> list[Image.Image]:
    """Blots in colours, none of them square, some dark and some bright."""
    drawn = np.random.default_rng(0)
    return [
        Image.fromarray(
            drawn.integers(50 * (i % 3), 100 + 50 * (i % 4), (5 + i, 7, 3), dtype=np.uint8)
        ).resize((90, 60 + i))
        for i in range(count)
    ]


def as_the_metadata_says(image: Image.Image, side: int, views: str) -> np.ndarray:
    """As a program would that has nothing of ours: `(views, 3, side, side)`."""
    boxes = np.array(json.loads(views)) * (image.size * 2)
    resized = [image.resize((side, side), Image.Resampling.BICUBIC, tuple(box)) for box in boxes]
    return np.stack([np.asarray(view).transpose(2, 0, 1) for view in resized])


def check_export(vlm: VLM, file: Path) -> None:
    import onnxruntime

    images, artifact = drawn_images(5), artifact_for(vlm)
    # Sigmoids over the scores that these images have: a small mistake in a feature would show.
    raw = Tagger(artifact, vlm).raw_scores(images)
    assert raw.std(0).min() > 1e-3
    slopes = np.array([0.5, 1.0, 2.0]) / raw.std(0)
    calibration = replace(artifact.calibration, slopes=slopes, offsets=-slopes * raw.mean(0))
    artifact = replace(artifact, calibration=calibration)
    export_onnx(artifact, vlm, file)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    side = vlm.identity.resolution
    metadata = session.get_modelmeta().custom_metadata_map
    pixels = np.stack([as_the_metadata_says(image, side, metadata["views"]) for image in images])
    pixels = pixels if vlm.settings.tiles else pixels[:, 0]
    assert (given.name, given.type) == ("pixels", "tensor(uint8)")
    assert given.shape[1:] == list(pixels.shape[1:])
    assert (got.name, got.type) == ("scores", "tensor(float)")
    expected = Tagger(artifact, vlm).scores(images)
    for batch in (1, 2, 5):
        (scores,) = session.run(["scores"], {"pixels": pixels[:batch]})
        assert scores.shape == (batch, len(NAMES))
        np.testing.assert_allclose(scores, expected[:batch], rtol=0, atol=1e-4)
    assert json.loads(metadata["labels"]) == list(NAMES)
    assert json.loads(metadata["thresholds"]) == [0.1, 0.2, 0.3]
    assert f"{side} x {side}" in metadata["preprocessing"]
    assert json.loads(metadata["vlm"]) == vlm.identity.model_dump()
    assert len(metadata["artifact"]) == 64
    assert metadata["datafree"]


@needs_onnx
def test_the_embedded_model_is_exported_whole(embedded_vlm: VLM, tmp_path: Path) -> None:
    check_export(embedded_vlm, tmp_path / "model.onnx")


@needs_onnx
@pytest.mark.parametrize(
    ("name", "image_side"),
    [
        ("tiny-RN-quickgelu", {}),
        ("tiny-ViT", {}),
        ("tiny-ViT", {"tiles": (2,), "patches": "refined"}),
    ],
)
def test_a_clip_is_exported_whole(name: str, image_side: dict[str, Any], tmp_path: Path) -> None:
    check_export(tiny_clip(name, tmp_path / "clip", **image_side), tmp_path / "out" / "model.onnx")


@needs_onnx
def test_another_model_is_refused(embedded_vlm: VLM, tmp_path: Path) -> None:
    artifact = artifact_for(embedded_vlm)
    other = replace(artifact, vlm=artifact.vlm.model_copy(update={"weights": "others"}))
    with pytest.raises(ValueError, match="differs in weights"):
        export_onnx(other, embedded_vlm, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
