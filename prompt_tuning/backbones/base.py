"""The contract between the method and a vision-language model (VLM), the backbone.

A backbone decides how texts are centred, how the scores of regions are aggregated, how the two
branches are fused, and where learnable tokens start. The method asks the backbone for these, and
never looks at which backbone it has.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor, nn

from prompt_tuning.features import Features
from prompt_tuning.images import as_rgb
from prompt_tuning.settings import Settings
from prompt_tuning.tiles import Box, view_boxes
from prompt_tuning.tuning.prompt_tree import PromptTree

ANCHOR_TEMPLATE = "a photo of a {}."


VIEWS_PER_BATCH = {"cpu": 4, "cuda": 64}
"""How many images, or tiles, are encoded at once, by the kind of device. Few on CPUs, to fit their
caches: EfficientNet is 1.4 times as fast as with 16."""
IMAGE_SIDE = ("resolution", "resize", "tiles", "patches")
"""The fields of VLMSettings that change nothing for texts."""


class VLMSettings(Settings):
    """The vision-language model that encodes texts and images.

    `kind: embedded` loads a model from installed packages. `kind: open_clip` loads a CLIP or SigLIP
    model of open_clip, whose weights are `pretrained`: a tag that open_clip downloads from its hub,
    or the path of a checkpoint. For a local checkpoint, set `quick_gelu`: the file does not say
    whether the model was trained with QuickGELU. SigLIP also downloads its tokenizer from Hugging
    Face's hub, and reads one resolution only. `resize`: the filter that brings images to
    `resolution`. `tiles`: how finely images are cut for small things: `[2]` encodes 2 × 2
    overlapping tiles beside the whole image, `[2, 3]` 3 × 3 too; each tile costs as much as the
    whole image. `patches`: what a CLIP ViT takes as features of its patches: the `value` path of
    the last block, or patches `refined` by the attention of the last layers (docs/method.md). Other
    models have `value` only.
    """

    kind: Literal["embedded", "open_clip"] = "embedded"
    model: str = "efficientnet-lite2+minilm"
    pretrained: str | None = None
    quick_gelu: bool | None = None
    resolution: Annotated[int, Field(ge=32, le=1024)] = 320
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    tiles: tuple[Annotated[int, Field(ge=2, le=4)], ...] = ()
    patches: Literal["value", "refined"] = "value"

    @field_validator("tiles")
    @classmethod
    def _finer_and_finer(cls, tiles: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(tiles)):
            raise ValueError(f"must increase, as in [2, 3] (got {list(tiles)})")
        return tiles


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
    """Everything in a VLM that scores depend on: an artifact fits no VLM of another identity."""

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
    identity: VLMIdentity
    geometry: Geometry
    context_width: int
    """Size of one learnable context token: the width of the text tower's input."""

    def __init__(self, settings: VLMSettings, cache: Path | None = None) -> None:
        """Load the towers. `cache`: a folder for results that are computed from the weights.

        Raises:
            ValueError: in one line, for wrong settings and for weights that cannot be loaded.
        """
        super().__init__()
        self.check_settings(settings)
        self.settings = settings

    @classmethod
    @abstractmethod
    def check_settings(cls, settings: VLMSettings) -> None:
        """Refuse settings that this backbone cannot follow, without loading weights.

        Raises:
            ValueError: in one line that names the field and the allowed values.
        """

    @classmethod
    def check_prompt_length(cls, settings: VLMSettings, tokens: int, names: list[str]) -> None:
        """Refuse context tokens that make a prompt too long, as far as known without weights.

        Raises:
            ValueError: in one line.
        """

    @classmethod
    def fetch_weights(cls, settings: VLMSettings) -> None:
        """Download the backbone's files from a hub, unless they are on this machine.

        Raises:
            ValueError: when the download fails.
        """

    @classmethod
    def weight_files(cls, settings: VLMSettings) -> list[Path]:
        """The local files that the backbone's results depend on; none for a tag of a hub."""
        path = Path(settings.pretrained or "")
        return [path] if path.is_file() else []

    @property
    def dim(self) -> int:
        return self.identity.dim

    def _preprocessing(self, pixels: str) -> str:
        """For the identity. `pixels`: how their values are normalised."""
        tiles = "".join(f", {n} x {n} tiles" for n in self.settings.tiles)
        patches = ", refined patches" if self.settings.patches == "refined" else ""
        return f"RGB, {self.settings.resize} straight resize, {pixels}{tiles}{patches}"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def images_per_batch(self) -> int:
        """How many images to encode at once: a power of two, so that it divides VIEWS_PER_BATCH."""
        most = VIEWS_PER_BATCH[self.device.type] / len(view_boxes(self.settings.tiles))
        return 2 ** max(0, math.floor(math.log2(most)))

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image as `(3, resolution, resolution)`, resized without keeping its aspect ratio.

        With `tiles`: `(views, 3, resolution, resolution)`, the whole image and then its tiles.
        """
        rgb = as_rgb(image)
        views = [self._resized(rgb, box) for box in view_boxes(self.settings.tiles)]
        return torch.stack(views) if self.settings.tiles else views[0]

    def _resized(self, image: Image.Image, box: Box) -> Tensor:
        side, (width, height) = self.identity.resolution, image.size
        left, top, right, bottom = box
        part = (left * width, top * height, right * width, bottom * height)
        resample = Image.Resampling[self.settings.resize.upper()]
        pixels = np.asarray(image.resize((side, side), resample, part))
        return self.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))

    @abstractmethod
    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels `(…, 3, height, width)`, RGB from 0 to 255, as the image tower expects them."""

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Features:
        """Pixels `(batch, 3, resolution, resolution)` to global and local features.

        With `tiles`, `(batch, views, 3, resolution, resolution)`: the global feature is that of
        the whole image, beside those of its tiles; the regions are those of all views, one view
        after the other.
        """
        views = pixels.shape[1] if pixels.dim() == 5 else 1
        flat = pixels.flatten(0, 1) if views > 1 else pixels
        # Makes convolutions faster on CPUs: RN50 by 2 to 30 %, EfficientNet by 10 to 80 %.
        pooled, regions = self.encode_views(flat.contiguous(memory_format=torch.channels_last))
        pooled = pooled.unflatten(0, (-1, views))
        return Features(
            pooled[:, 0],
            regions.flatten(0, 1),
            torch.full((pooled.shape[0],), views * regions.shape[1]),
            pooled[:, 1:] if views > 1 else None,
        )

    @abstractmethod
    def encode_views(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Whole images and tiles alike, `(views, 3, resolution, resolution)`, to unit features:
        global `(views, dim)` and of each location, row by row, `(views, locations, dim)`."""

    @abstractmethod
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts to `(texts, dim)`, scaled as they are added up in class features (prompts.py)."""

    @abstractmethod
    def encode_captions(self, captions: list[str]) -> Features:
        """Captions in place of images: global and local features."""

    @abstractmethod
    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        """Prompts `SOS | context | name . | EOS` to `(names, dim)`, differentiable in the context.

        `context`: `(names, tokens, context_width)`.
        """

    @abstractmethod
    def initial_context(self, tokens: int) -> Tensor:
        """The initial learnable tokens, before noise is added: `(tokens, context_width)`."""


class CausalVLM(VLM):
    """A VLM whose text tower is causal: prompts are encoded as a tree (prompt_tree.py)."""

    @abstractmethod
    def prompt_words(self, names: list[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids around the context: those before it, and those after it for each name."""

    @abstractmethod
    def embed_words(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids `(words,)`: `(words, context_width)`."""

    @abstractmethod
    def check_length(self, tokens: int, name: str) -> None:
        """Raises ValueError when the prompt of a category has more tokens than the tower reads."""

    @abstractmethod
    def encode_tree(self, tokens: Tensor, tree: PromptTree) -> Tensor:
        """Packed prompts to `(classes, dim)`, differentiable in the tokens.

        `tokens`: `(tokens, context_width)`, in the order of the tree.
        """
