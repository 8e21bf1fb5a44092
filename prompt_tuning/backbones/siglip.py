"""SigLIP and SigLIP 2 through open_clip, at the fixed resolutions that they were trained for.

SigLIP: Zhai et al., 2023, arXiv 2303.15343. SigLIP 2: Tschannen et al., 2025, arXiv 2502.14786.
Image tower: a ViT of timm's with a pool that attends to its patches (MAP head: Zhai et al., 2022,
arXiv 2106.04560, §3.2). Text tower: attends in both directions, to the padding too, and pools at
its last position.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import VLM, Geometry, VLMIdentity, VLMSettings
from prompt_tuning.backbones.checkpoint import (
    check_checkpoint,
    fetch,
    load_model,
    load_tokenizer,
    model_config,
)
from prompt_tuning.features import Features

_TEXT_BATCH = 256
# What a model's config may say: sizes and names freely, and what the formulas below rest on with
# one value. Anything else names other towers, for which they would be silently wrong.
_FREE = {
    "": {"embed_dim", "init_logit_bias", "vision_cfg", "text_cfg"},
    "text": {
        "context_length",
        "vocab_size",
        "hf_tokenizer_name",
        "width",
        "heads",
        "layers",
        "mlp_ratio",
        "norm_kwargs",
        "act_kwargs",
    },
    "vision": {"image_size", "timm_model_name"},
}
_FIXED: dict[str, dict[str, Any]] = {
    "": {"custom_text": True},
    "text": {
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
        "tokenizer_kwargs": {"clean": "canonicalize"},
    },
    "vision": {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"},
}
# Without class token. Variants pooled in another way or of free resolution are named otherwise.
_IMAGE_TOWER = re.compile(r"vit_[a-z0-9]+_patch\d+_siglip_\d+")


class SigLIP(VLM):
    """A SigLIP model of open_clip in float32, with the weights of a tag or a local checkpoint."""

    geometry = Geometry(
        scale=4.0, aggregation="softmax", local_temperature=50.0, global_weight=0.65
    )
    vision: Any
    text: Any

    def __init__(self, settings: VLMSettings, cache: Path | None = None) -> None:
        super().__init__(settings, cache)
        self.tokenizer = load_tokenizer(settings.model)
        model, weights = load_model(settings)
        self.vision, self.text = model.visual.trunk, model.text
        self.identity = VLMIdentity(
            kind="open_clip",
            model=settings.model,
            weights=weights,
            # open_clip's tags all say so. For a local checkpoint it would take OpenAI's values.
            preprocessing=(
                "RGB, bicubic straight resize, no crop, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)"
            ),
            resolution=settings.resolution,
            dim=self.text.text_projection.out_features,
        )
        self.context_width = self.text.width
        self.eval().requires_grad_(False)

    @classmethod
    def check_settings(cls, settings: VLMSettings) -> None:
        name, config = settings.model, model_config(settings.model)
        foreign = _foreign_parts(config)
        if foreign:
            raise ValueError(
                f"vlm.model {name!r} is not supported: it is no plain SigLIP ({', '.join(foreign)})"
            )
        side = config["vision_cfg"]["image_size"]
        if settings.resolution != side:
            raise ValueError(
                f"vlm.resolution must be {side} for {name} (got {settings.resolution})"
            )
        check_checkpoint(settings, config)

    @classmethod
    def check_prompt_length(cls, settings: VLMSettings, tokens: int, names: list[str]) -> None:
        # Without the tokenizer, which may have to be downloaded: a word and EOS must fit.
        most = model_config(settings.model)["text_cfg"]["context_length"]
        if tokens + 2 > most:
            raise ValueError(
                f"prompts: {tokens} context tokens leave no room for a name and EOS in the {most} "
                f"that {settings.model} reads"
            )

    @classmethod
    def fetch_weights(cls, settings: VLMSettings) -> None:
        fetch(settings)

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Features:
        """Pixels to open_clip's own image feature and the attention pool of each patch alone.

        A pool that attends to one patch gives its value, whatever the query: so a region is the
        patch's value through the output projection and the residual MLP (the value path of
        MaskCLIP, arXiv 2112.01071, §3.3, taken to this pool).
        """
        patches = self.vision.forward_features(pixels)
        pool = self.vision.attn_pool
        value_weight, value_bias = pool.kv.weight.chunk(2)[1], pool.kv.bias.chunk(2)[1]
        attended = pool.proj(F.linear(patches, value_weight, value_bias))
        regions = attended + pool.mlp(pool.norm(attended))
        batch, locations, _ = regions.shape
        return Features(
            pooled=F.normalize(self.vision.forward_head(patches), dim=-1),
            regions=F.normalize(regions, dim=-1).flatten(0, 1),
            counts=torch.full((batch,), locations),
        )

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Texts to `(texts, dim)`, not normalised; what exceeds the tower's context is cut off."""
        pooled = []
        for start in range(0, len(texts), _TEXT_BATCH):
            ids, _ = self._tokenize(texts[start : start + _TEXT_BATCH])
            pooled.append(self._text_tower(self.text.token_embedding(ids))[:, -1])
        return torch.cat(pooled)

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Features:
        """Global: the pooled feature. Local: those of all tokens up to EOS, without the padding.

        After TaI-DPT (arXiv 2211.12739, §3.3). What exceeds the tower's context is cut off.
        """
        pooled, regions, counts = [], [], []
        for start in range(0, len(captions), _TEXT_BATCH):
            ids, is_token = self._tokenize(captions[start : start + _TEXT_BATCH])
            features = F.normalize(self._text_tower(self.text.token_embedding(ids)), dim=-1)
            pooled.append(features[:, -1])
            regions.append(features[is_token])
            counts.append(is_token.sum(1).cpu())
        return Features(torch.cat(pooled), torch.cat(regions), torch.cat(counts))

    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        """Prompts `context | name . | EOS | padding` to `(names, dim)`, not normalised.

        There is no SOS, and the model's own cleaning of texts drops the full stop.

        `context`: `(names, tokens, context_width)`, which gradients reach (CoOp, arXiv 2109.01134,
        §3.2: class-specific context is the general case, shared context is an expanded tensor).

        Raises:
            ValueError: for a prompt longer than the text tower's context.
        """
        # SigLIP 2's tokenizer has other ids for a text's first word than for later ones, and names
        # follow the context: so each is read after a word of one token, which is then dropped.
        ids, is_token = self._tokenize([f"a {name}." for name in names])
        ids, is_token = ids[:, 1:], is_token[:, 1:]
        lengths = is_token.sum(1) + context.shape[1]
        longest = int(lengths.argmax())
        if lengths[longest] > self.text.context_length:
            raise ValueError(
                f"prompts: {int(lengths[longest])} tokens with the category {names[longest]!r} "
                f"exceed the {self.text.context_length} that {self.identity.model} reads"
            )
        embeddings = torch.cat([context, self.text.token_embedding(ids)], dim=1)
        return self._text_tower(embeddings[:, : self.text.context_length])[:, -1]

    def initial_context(self, tokens: int) -> Tensor:
        return torch.zeros(tokens, self.context_width, device=self.device)

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids, padded, and which are tokens of the text: both `(texts, context_length)`.

        As open_clip's tokenizer, which does not tell the padding: SigLIP's has the id of EOS.
        """
        tokens = self.tokenizer.tokenizer(
            [self.tokenizer.clean_fn(text) for text in texts],
            return_tensors="pt",
            max_length=self.text.context_length,
            padding="max_length",
            truncation=True,
        ).to(self.device)
        return tokens.input_ids, tokens.attention_mask.bool()

    def _text_tower(self, embeddings: Tensor) -> Tensor:
        """Token embeddings `(texts, context_length, width)` to `(texts, context_length, dim)`."""
        hidden = self.text.transformer(embeddings + self.text.positional_embedding)
        return self.text.text_projection(self.text.ln_final(hidden))


def _foreign_parts(config: dict[str, Any]) -> list[str]:
    parts = []
    for tower, section in (
        ("", config),
        ("text", config["text_cfg"]),
        ("vision", config["vision_cfg"]),
    ):
        fixed = _FIXED[tower]
        foreign = section.keys() - _FREE[tower] - fixed.keys()
        foreign |= {key for key, value in fixed.items() if section.get(key) != value}
        parts += sorted(f"{tower} {key}".strip() for key in foreign)
    if not _IMAGE_TOWER.fullmatch(config["vision_cfg"].get("timm_model_name", "")):
        parts.append("vision timm_model_name")
    return parts
