"""SigLIP and SigLIP 2 through open_clip, at the fixed resolutions that they were trained for.

SigLIP: Zhai et al., 2023, arXiv 2303.15343. SigLIP 2: Tschannen et al., 2025, arXiv 2502.14786.
Image tower: a ViT of timm's with a pool that attends to its patches (MAP head: Zhai et al., 2022,
arXiv 2106.04560, §3.2). Text tower: attends in both directions, to the padding too, and pools at
its last position.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.backbones.checkpoint import load_model, load_tokenizer, model_config
from prompt_tuning.backbones.open_clip_vlm import OpenClipVLM, refuse_longer

# Without class token. Variants with other pooling or free resolution have other names.
_IMAGE_TOWER = re.compile(r"vit_[a-z0-9]+_patch\d+_siglip_\d+")


class SigLIP(OpenClipVLM):
    """A SigLIP model of open_clip."""

    free: ClassVar = {
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
    fixed: ClassVar = {
        "": {"custom_text": True},
        "text": {
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
        "vision": {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"},
    }
    vision: Any
    text: Any

    def __init__(self, settings: VLMSettings, cache: Path | None = None) -> None:
        super().__init__(settings, cache)
        self.tokenizer = load_tokenizer(settings.model)
        model, weights = load_model(settings)
        self.vision, self.text = model.visual.trunk, model.text
        # As all of open_clip's tags have it. For a local checkpoint it would take OpenAI's values.
        half = (0.5, 0.5, 0.5)
        self.identity = self.identify(weights, half, half, self.text.text_projection.out_features)
        self.context_width = self.text.width
        self.eval().requires_grad_(False)

    @classmethod
    def foreign_parts(cls, config: dict[str, Any]) -> list[str]:
        parts = super().foreign_parts(config)
        if not _IMAGE_TOWER.fullmatch(config["vision_cfg"].get("timm_model_name", "")):
            parts.append("vision timm_model_name")
        return parts

    @classmethod
    def check_resolution(cls, settings: VLMSettings, config: dict[str, Any]) -> None:
        side = config["vision_cfg"]["image_size"]
        if settings.resolution != side:
            raise ValueError(
                f"vlm.resolution must be {side} for {settings.model} (got {settings.resolution})"
            )

    @classmethod
    def check_prompt_length(cls, settings: VLMSettings, tokens: int, names: list[str]) -> None:
        # Without the tokenizer, which may have to be downloaded: a word and EOS must fit.
        most = model_config(settings.model)["text_cfg"]["context_length"]
        if tokens + 2 > most:
            raise ValueError(
                f"prompts: {tokens} context tokens leave no room for a name and EOS in the {most} "
                f"that {settings.model} reads"
            )

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels to open_clip's own image feature and the attention pool of each patch alone.

        A pool that attends to one patch returns its value, whatever the query. So a region is the
        patch's value through the output projection and the residual MLP: the value path of
        MaskCLIP (arXiv 2112.01071, §3.3), applied to this pool.
        """
        patches = self.vision.forward_features(pixels)
        pool = self.vision.attn_pool
        value_weight, value_bias = pool.kv.weight.chunk(2)[1], pool.kv.bias.chunk(2)[1]
        attended = pool.proj(F.linear(patches, value_weight, value_bias))
        regions = attended + pool.mlp(pool.norm(attended))
        return self.vision.forward_head(patches), regions

    def text_features(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The pooled feature is at the last position; the tokens are those up to EOS."""
        ids, is_token = self._tokenize(texts)
        features = self._text_tower(self.text.token_embedding(ids))
        return features[:, -1], features, is_token

    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        """Prompts `context | name . | EOS | padding` to `(names, dim)`, not normalised.

        There is no SOS, and the model's own cleaning of texts drops the full stop.

        `context`: `(names, tokens, context_width)`, which gradients reach (CoOp, arXiv 2109.01134,
        §3.2: class-specific context is the general case, shared context is an expanded tensor).

        Raises:
            ValueError: for a prompt longer than the text tower's context.
        """
        # SigLIP 2's tokenizer has other ids for a text's first word than for later ones, and a name
        # follows the context. So each name is tokenized after "a", whose one token is dropped.
        ids, is_token = self._tokenize([f"a {name}." for name in names])
        ids, is_token = ids[:, 1:], is_token[:, 1:]
        lengths = is_token.sum(1) + context.shape[1]
        longest = int(lengths.argmax())
        most = self.text.context_length
        refuse_longer(int(lengths[longest]), most, names[longest], self.identity.model)
        embeddings = torch.cat([context, self.text.token_embedding(ids)], dim=1)
        return self._text_tower(embeddings[:, :most])[:, -1]

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids, padded, and which are tokens of the text: both `(texts, context_length)`.

        As open_clip's tokenizer, which does not mark the padding: SigLIP's has the id of EOS.
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
