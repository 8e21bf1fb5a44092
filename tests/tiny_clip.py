"""A small CLIP of open_clip's with random weights: a causal text tower that loads in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings

_NAME = "tiny-CLIP"
_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


def write_tiny_clip(folder: Path) -> None:
    """Write its config and weights, random in all that open_clip starts at 0 or 1 too."""
    (folder / f"{_NAME}.json").write_text(json.dumps(_CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(_NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "weights.safetensors")


def load_tiny_clip(folder: Path) -> VLM:
    """Load what `write_tiny_clip` wrote, in this process or another."""
    open_clip.add_model_config(folder)
    return load_vlm(
        VLMSettings(
            kind="open_clip",
            model=_NAME,
            pretrained=str(folder / "weights.safetensors"),
            quick_gelu=False,
            resolution=32,
        )
    )
