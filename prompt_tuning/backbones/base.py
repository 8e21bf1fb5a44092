"""What the method asks of a vision-language model.

The backbone owns its geometry: how texts are centred, how regions are aggregated, how the two
branches are fused and where learnable tokens may start. The method asks for these and never
looks at which backbone it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from prompt_tuning.features import Features
from prompt_tuning.images import as_rgb
from prompt_tuning.settings import Settings
from prompt_tuning.tuning.prompt_tree import PromptTree

ANCHOR_TEMPLATE = "a photo of a {}."
EMBEDDED_MODELS = ("efficientnet-lite0+minilm", "efficientnet-lite2+minilm")


class VLMSettings(Settings):
    """Which vision-language model encodes texts and images.

    `embedded` models come from packages (docs/embedded-model.md). `open_clip` takes a CLIP or
    SigLIP model of open_clip with `pretrained`: a tag that open_clip downloads from its hub, or the
    path of a checkpoint. For a local checkpoint, set `quick_gelu`: the file does not say it.
    SigLIP's tokenizers come from Hugging Face's hub too; its models read one resolution only.
    """

    kind: Literal["embedded", "open_clip"] = "embedded"
    model: str = "efficientnet-lite2+minilm"
    pretrained: str | None = None
    quick_gelu: bool | None = None
    resolution: Annotated[int, Field(ge=32, le=1024)] = 320


class Geometry(Settings):
    """How a backbone turns cosines into scores.

    `softmax`: `Σ_r scale·cos_r · softmax_r(temperature·cos_r)` over regions r (TaI-DPT, §3.3).
    `log_mean_exp`: `scale/temperature · log mean_r exp(temperature·cos_r)`.
    """

    scale: float
    aggregation: Literal["softmax", "log_mean_exp"]
    local_temperature: float
    global_weight: float


class VLMIdentity(Settings):
    """What class features depend on: a reader with another VLM must refuse them."""

    kind: str
    model: str
    weights: str
    preprocessing: str
    centring: str = "none"
    resolution: int
    dim: int


class VLM(nn.Module, ABC):
    """A frozen image encoder and text encoder that share one space of `dim` numbers."""

    settings: VLMSettings
    """What `load_vlm` loaded it by, and would again."""
    identity: VLMIdentity
    geometry: Geometry
    context_width: int
    """Size of one learnable context token: the width of the text tower's input."""

    @property
    def dim(self) -> int:
        return self.identity.dim

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image as `(3, resolution, resolution)`: resized straight, not cropped."""
        size = (self.identity.resolution, self.identity.resolution)
        pixels = np.asarray(as_rgb(image).resize(size, Image.Resampling.BICUBIC))
        return self.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))

    @abstractmethod
    def normalize(self, pixels: Tensor) -> Tensor:
        """RGB from 0 to 255, `(…, 3, height, width)`, as the image tower takes it."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Features:
        """Pixels `(batch, 3, resolution, resolution)` to global and local features."""

    @abstractmethod
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts to `(texts, dim)`, as they are added up in a class feature (see prompts.py)."""

    @abstractmethod
    def encode_captions(self, captions: list[str]) -> Features:
        """Captions standing in for images: global and local features."""

    @abstractmethod
    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        """Prompts `SOS | context | name . | EOS` to `(names, dim)`, differentiable in the context.

        `context`: `(names, tokens, context_width)`.
        """

    @abstractmethod
    def initial_context(self, tokens: int) -> Tensor:
        """Where learnable tokens start, before noise: `(tokens, context_width)`."""


class CausalVLM(VLM):
    """A VLM whose text tower is causal: prompts are encoded as a tree (prompt_tree.py)."""

    @abstractmethod
    def prompt_words(self, names: list[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of the words around the context: before it, and after it for each name."""

    @abstractmethod
    def embed_words(self, ids: Tensor) -> Tensor:
        """Input embeddings of words `(words,)`: `(words, context_width)`."""

    @abstractmethod
    def check_prompt_length(self, tokens: int, name: str) -> None:
        """Raises ValueError for a prompt of more tokens than the tower reads."""

    @abstractmethod
    def encode_tree(self, tokens: Tensor, tree: PromptTree) -> Tensor:
        """Packed prompts to `(classes, dim)`, differentiable in the tokens.

        `tokens`: `(tokens, context_width)`, in the order of the tree.
        """


def load_vlm(
    settings: VLMSettings = VLMSettings(),
    device: str | torch.device = "cpu",
    cache: Path | None = None,
) -> VLM:
    """Load a backbone in evaluation mode with its weights frozen.

    `cache`: where a backbone may keep what it derives from its weights.

    Raises:
        ValueError: as `check_vlm` does.
    """
    check_vlm(settings)
    vlm: VLM
    if settings.kind == "embedded":
        from prompt_tuning.backbones.imagenet_bridge import EmbeddedVLM

        vlm = EmbeddedVLM(settings, cache)
    elif _is_siglip(settings.model):
        from prompt_tuning.backbones.siglip import SigLIPVLM

        vlm = SigLIPVLM(settings)
    else:
        from prompt_tuning.backbones.clip import OpenCLIPVLM

        vlm = OpenCLIPVLM(settings)
    vlm.settings = settings
    return vlm.to(device).eval().requires_grad_(False)


def check_vlm(settings: VLMSettings) -> None:
    """Refuse settings that no backbone can follow, without loading weights.

    Raises:
        ValueError: naming the field and what would be right.
    """
    if settings.kind == "open_clip" and _is_siglip(settings.model):
        from prompt_tuning.backbones import siglip as siglip_vlm

        siglip_vlm.check(settings)
    elif settings.kind == "open_clip":
        from prompt_tuning.backbones import clip as open_clip_vlm

        open_clip_vlm.check(settings)
    elif settings.model not in EMBEDDED_MODELS:
        raise ValueError(
            f"vlm.model: {settings.model!r} is no embedded model; there are: "
            + ", ".join(EMBEDDED_MODELS)
        )
    elif settings.pretrained is not None or settings.quick_gelu is not None:
        raise ValueError("vlm.pretrained and vlm.quick_gelu: only go with vlm.kind: open_clip")


def check_prompt_length(settings: VLMSettings, tokens: int, names: list[str]) -> None:
    """Refuse more context tokens than fit beside the names, as far as is known without a download.

    Raises:
        ValueError: in one line.
    """
    if settings.kind != "open_clip":  # the embedded model reads 512
        return
    if _is_siglip(settings.model):
        from prompt_tuning.backbones import siglip as siglip_vlm

        siglip_vlm.check_prompt_length(settings, tokens)
    else:
        from prompt_tuning.backbones import clip as open_clip_vlm

        open_clip_vlm.check_prompt_length(settings, tokens, names)


def _is_siglip(model: str) -> bool:
    from prompt_tuning.backbones.checkpoint import is_siglip, model_config

    return is_siglip(model_config(model))


def fetch_weights(settings: VLMSettings) -> None:
    """Download what a backbone needs from its hub, unless it is on this machine.

    Raises:
        ValueError: when it cannot be had.
    """
    if settings.kind == "open_clip":
        from prompt_tuning.backbones.checkpoint import fetch

        fetch(settings)


def weight_files(settings: VLMSettings) -> list[Path]:
    """The local files whose content decides what a backbone computes (none for a hub's tag)."""
    if settings.kind == "embedded":
        from prompt_tuning.backbones.imagenet_bridge import weight_files as embedded_weight_files

        return embedded_weight_files(settings)
    path = Path(settings.pretrained or "")
    return [path] if path.is_file() else []
