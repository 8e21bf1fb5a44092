"""Everything that CLIP and SigLIP share; their towers are in clip.py and siglip.py."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import VLM, Geometry, VLMIdentity, VLMSettings
from prompt_tuning.backbones.checkpoint import check_checkpoint, fetch, model_config
from prompt_tuning.features import Features

_TEXT_BATCH = 256


class OpenClipVLM(VLM):
    """A model of open_clip in float32, with the weights of a hub's tag or a local checkpoint.

    `free` and `fixed` list the keys that a model's config may have, for the whole model (""), its
    "text" and its "vision" tower: keys with any value, and keys with one value. Another key names
    another tower, for which the formulas would be silently wrong.
    """

    geometry = Geometry(
        scale=4.0, aggregation="softmax", local_temperature=50.0, global_weight=0.65
    )
    free: ClassVar[dict[str, set[str]]]
    fixed: ClassVar[dict[str, dict[str, Any]]]

    @classmethod
    def check_settings(cls, settings: VLMSettings) -> None:
        config = model_config(settings.model)
        if foreign := cls.foreign_parts(config):
            raise ValueError(
                f"vlm.model {settings.model!r} is not supported: it is not a plain {cls.__name__} "
                f"({', '.join(foreign)})"
            )
        if settings.patches == "refined" and not cls.refines_patches(config):
            raise ValueError(f"vlm.patches: refined needs a CLIP ViT (got {settings.model})")
        cls.check_resolution(settings, config)
        check_checkpoint(settings, config)

    @classmethod
    def foreign_parts(cls, config: dict[str, Any]) -> list[str]:
        """The keys of a model's config that this backbone does not support."""
        parts = []
        for tower, free in cls.free.items():
            section = config[f"{tower}_cfg"] if tower else config
            fixed = cls.fixed[tower]
            foreign = section.keys() - free - fixed.keys()
            foreign |= {key for key, value in fixed.items() if section.get(key) != value}
            parts += sorted(f"{tower} {key}".strip() for key in foreign)
        return parts

    @classmethod
    def refines_patches(cls, config: dict[str, Any]) -> bool:
        """Whether the image tower can follow `vlm.patches: refined`."""
        return False

    @classmethod
    @abstractmethod
    def check_resolution(cls, settings: VLMSettings, config: dict[str, Any]) -> None:
        """Raises ValueError for a resolution that the image tower cannot read."""

    @classmethod
    def fetch_weights(cls, settings: VLMSettings) -> None:
        fetch(settings)

    def identify(
        self, weights: str, mean: tuple[float, ...], std: tuple[float, ...], dim: int
    ) -> VLMIdentity:
        """The identity of this model with weights of this digest."""
        return VLMIdentity(
            kind="open_clip",
            model=self.settings.model,
            weights=weights,
            preprocessing=self._preprocessing(f"no crop, mean {mean}, std {std}"),
            resolution=self.settings.resolution,
            dim=dim,
        )

    def encode_views(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled, regions = self.image_features(pixels)
        return F.normalize(pooled, dim=-1), F.normalize(regions, dim=-1)

    @abstractmethod
    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features before normalisation: `(batch, dim)` and `(batch, locations, dim)`."""

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts to `(texts, dim)`, not normalised; the tower's context length truncates them."""
        batches = [texts[i : i + _TEXT_BATCH] for i in range(0, len(texts), _TEXT_BATCH)]
        return torch.cat([self.text_features(batch)[0] for batch in batches])

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Features:
        """Global: the pooled feature. Local: the features of all tokens (TaI-DPT, §3.3).

        The tower's context length truncates captions. TaI-DPT: arXiv 2211.12739.
        """
        pooled, regions, counts = [], [], []
        for start in range(0, len(captions), _TEXT_BATCH):
            ends, tokens, is_token = self.text_features(captions[start : start + _TEXT_BATCH])
            pooled.append(F.normalize(ends, dim=-1))
            regions.append(F.normalize(tokens, dim=-1)[is_token])
            counts.append(is_token.sum(1).cpu())
        return Features(torch.cat(pooled), torch.cat(regions), torch.cat(counts))

    @abstractmethod
    def text_features(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features `(texts, dim)`, those of all positions `(texts, positions, dim)`, and
        which positions are tokens of the text `(texts, positions)`, bool; not normalised."""

    def initial_context(self, tokens: int) -> Tensor:
        return torch.zeros(tokens, self.context_width, device=self.device)


def refuse_longer(tokens: int, most: int, name: str, model: str) -> None:
    """Raises ValueError if the prompt of a category has more tokens than the model reads."""
    if tokens > most:
        raise ValueError(
            f"prompts: {tokens} tokens with the category {name!r} exceed the {most} that {model} "
            "reads"
        )
