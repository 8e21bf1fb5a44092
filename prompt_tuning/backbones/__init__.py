"""The choice of a backbone. Each is imported only when it is chosen: some take seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from prompt_tuning.backbones.base import VLM, VLMSettings


def backbone_class(settings: VLMSettings) -> type[VLM]:
    """The class of the backbone that the settings name.

    Raises:
        ValueError: for a model that open_clip does not know.
    """
    if settings.kind == "embedded":
        from prompt_tuning.backbones.imagenet_bridge import ImageNetBridge

        return ImageNetBridge
    from prompt_tuning.backbones.checkpoint import model_config

    if "siglip" in model_config(settings.model)["vision_cfg"].get("timm_model_name", ""):
        from prompt_tuning.backbones.siglip import SigLIP

        return SigLIP
    from prompt_tuning.backbones.clip import CLIP

    return CLIP


def load_vlm(
    settings: VLMSettings = VLMSettings(),
    device: str | torch.device = "cpu",
    cache: Path | None = None,
) -> VLM:
    """Load a backbone in evaluation mode with its weights frozen.

    `cache`: a folder where a backbone may keep what it computes from its weights.

    Raises:
        ValueError: as `VLM.check_settings` does, and for weights that cannot be loaded.
    """
    return backbone_class(settings)(settings, cache).to(device).eval().requires_grad_(False)


def fetch_weights(settings: VLMSettings) -> None:
    """See `VLM.fetch_weights`."""
    backbone_class(settings).fetch_weights(settings)
