"""An artifact as one ONNX file, from pixels to calibrated scores, for programs without PyTorch.

The image tower, the class features and the calibration are in the file; the text tower is not,
for the class features have taken its place.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from prompt_tuning.backbones.base import VLM
from prompt_tuning.install_hints import pip_install
from prompt_tuning.storage import digest, write_atomic
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tiles import view_boxes
from prompt_tuning.tuning.scoring import raw_image_scores

OPSET = 18
_PACKAGES = ("onnx", "onnxscript")
_BATCH = 2  # what is traced; a batch of 1 would be taken for a constant


def export_onnx(artifact: Artifact, vlm: VLM, file: Path) -> None:
    """Write the artifact with the image tower of its VLM.

    Input `pixels`: uint8 `(batch, 3, resolution, resolution)`, RGB, any batch; for a VLM with
    `tiles`, `(batch, views, 3, resolution, resolution)`. Output `scores`: float32
    `(batch, classes)` in [0, 1], as `Tagger.scores`. The model's metadata holds `labels` and
    `thresholds` (JSON lists in the order of the classes), `views` (a JSON list of each view's left,
    top, right and bottom, as shares of the image), `preprocessing`, `vlm` (JSON), `artifact` (the
    SHA-256 of what was exported) and `datafree` (its version).

    Raises:
        ValueError: in one line, when ONNX's packages are missing or `vlm` is not the one that the
            artifact was tuned for.
    """
    check_packages()
    artifact.check_vlm(vlm)
    side, views = vlm.identity.resolution, len(view_boxes(vlm.settings.tiles))
    shape = (_BATCH, views, 3, side, side) if vlm.settings.tiles else (_BATCH, 3, side, side)
    scorer = _Scorer(artifact, vlm).eval()
    pixels = torch.zeros(shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch warns of its own parts
        program = torch.onnx.export(
            scorer,
            (pixels,),
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, text in _metadata(artifact).items():
        model.metadata_props.add(key=name, value=text)
    write_atomic(file, model.SerializeToString())


def check_packages() -> None:
    """Raises ValueError in one line when ONNX's packages are missing."""
    lacking = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise ValueError(f"--onnx needs {' and '.join(lacking)}: {pip_install(*lacking)}")


def _metadata(artifact: Artifact) -> dict[str, str]:
    side, resize = artifact.vlm.resolution, artifact.vlm_settings.resize.upper()
    calibration = artifact.calibration.to_json()
    return {
        "labels": json.dumps(artifact.categories.names, ensure_ascii=False),
        "thresholds": json.dumps(calibration["thresholds"]),
        "views": json.dumps(view_boxes(artifact.vlm_settings.tiles)),
        "preprocessing": (
            "uint8, channels first, RGB; turned upright as EXIF says; each view resized straight "
            f"to {side} x {side} (Pillow's {resize}); the file does the rest"
        ),
        "vlm": artifact.vlm.model_dump_json(),
        "artifact": digest(
            [
                artifact.categories.names,
                artifact.classes.pooled.tolist(),
                artifact.classes.local.tolist(),
                artifact.geometry.model_dump(),
                calibration,
                artifact.vlm.model_dump(),
            ]
        ),
        "datafree": version("datafree"),
    }


class _Scorer(nn.Module):
    """Pixels to calibrated scores, as `Tagger` computes them."""

    pooled: Tensor
    local: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, artifact: Artifact, vlm: VLM) -> None:
        super().__init__()
        self.vlm, self.geometry = vlm, artifact.geometry
        for name, values in (
            ("pooled", artifact.classes.pooled),
            ("local", artifact.classes.local),
            ("slopes", torch.from_numpy(artifact.calibration.slopes)),
            ("offsets", torch.from_numpy(artifact.calibration.offsets)),
        ):
            self.register_buffer(name, values.float())

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.vlm.encode_image(self.vlm.normalize(pixels))
        raw = raw_image_scores(features, self.pooled, self.local, self.geometry)
        return torch.sigmoid(self.slopes * raw + self.offsets)
