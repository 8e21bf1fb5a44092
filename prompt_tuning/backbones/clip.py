"""CLIP through open_clip: OpenAI's ResNets and ViTs and those trained after their pattern.

CLIP: Radford et al., 2021, arXiv 2103.00020. Only its own two kinds of image tower and its causal
text transformer are supported; other towers of open_clip (CoCa, timm's, Hugging Face's) are
refused. SigLIP has a module of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_tuning.backbones.base import CausalVLM, VLMSettings
from prompt_tuning.backbones.checkpoint import load_model, load_tokenizer, model_config
from prompt_tuning.backbones.open_clip_vlm import OpenClipVLM, refuse_longer
from prompt_tuning.tuning.prompt_tree import PromptTree

_RESNET_STRIDE = 32


class CLIP(OpenClipVLM, CausalVLM):
    """A CLIP model of open_clip.

    Images for a local checkpoint are normalised with OpenAI's mean and standard deviation, as
    open_clip does: the file does not say. At a resolution other than the model's own, positional
    embeddings of the image tower are interpolated.
    """

    free: ClassVar = {
        "": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"},
        "text": {"context_length", "vocab_size", "width", "heads", "layers"},
        "vision": {
            "image_size",
            "layers",
            "width",
            "patch_size",
            "head_width",
            "mlp_ratio",
            "ls_init_value",
        },
    }
    fixed: ClassVar = {"": {}, "text": {}, "vision": {}}
    model: Any

    def __init__(self, settings: VLMSettings, cache: Path | None = None) -> None:
        super().__init__(settings, cache)
        self.model, weights = load_model(settings)
        visual = self.model.visual
        # Not buffers: images are prepared on the CPU wherever the model is.
        self.mean = torch.tensor(visual.image_mean).view(3, 1, 1)
        self.std = torch.tensor(visual.image_std).view(3, 1, 1)
        dim = self.model.text_projection.shape[1]
        self.identity = self.identify(
            weights, tuple(visual.image_mean), tuple(visual.image_std), dim
        )
        config = model_config(settings.model)
        self.is_resnet = _is_resnet(config)
        _resize_positions(
            visual.attnpool if self.is_resnet else visual, settings.resolution // _stride(config)
        )
        self.context_width = self.model.token_embedding.embedding_dim
        self.tokenizer = load_tokenizer(settings.model)
        self.eval().requires_grad_(False)

    @classmethod
    def refines_patches(cls, config: dict[str, Any]) -> bool:
        return not _is_resnet(config)

    @classmethod
    def check_resolution(cls, settings: VLMSettings, config: dict[str, Any]) -> None:
        stride = _stride(config)
        if settings.resolution % stride:
            raise ValueError(
                f"vlm.resolution must be a multiple of {stride} for {settings.model}, which was "
                f"trained at {config['vision_cfg']['image_size']} (got {settings.resolution})"
            )

    @classmethod
    def check_prompt_length(cls, settings: VLMSettings, tokens: int, names: list[str]) -> None:
        ids = load_tokenizer(settings.model)([f"{name}." for name in names])
        longest = int(ids.argmax(-1).argmax())
        length = int(ids[longest].argmax()) + 1 + tokens
        most = model_config(settings.model)["text_cfg"]["context_length"]
        refuse_longer(length, most, names[longest], settings.model)

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels to open_clip's own image feature and, for each location, the value path.

        ResNets: the attention pool's value and output projections of the last feature map, without
        the positional embedding (TaI-DPT, arXiv 2211.12739; its code also leaves it out of the
        global pooling, which here stays as the model was trained). ViTs: only `ln_1`, value and
        output projection of the last block at each patch, without residual and MLP, then `ln_post`
        and the projection (the formula of MaskCLIP, arXiv 2112.01071, §3.3; later code keeps
        residual and MLP).
        """
        return self._resnet(pixels) if self.is_resnet else self._vit(pixels)

    def _resnet(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.model.visual
        outputs = visual.forward_intermediates(pixels, indices=[4])
        maps = outputs["image_intermediates"][0].flatten(2).transpose(1, 2)
        return outputs["image_features"], visual.attnpool.c_proj(visual.attnpool.v_proj(maps))

    def _vit(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.model.visual
        blocks = visual.transformer.resblocks
        outputs = visual.forward_intermediates(pixels, indices=[len(blocks) - 2], output_fmt="NLC")
        last, patches = blocks[-1], outputs["image_intermediates"][0]
        regions = visual.ln_post(last.ls_1(_values(last, patches))) @ visual.proj
        return outputs["image_features"], regions

    def encode_views(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.settings.patches == "refined":
            return self._refined_vit(pixels)
        return super().encode_views(pixels)

    def _refined_vit(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As TagCLIP has it (arXiv 2312.12828, §3.1 and §3.2), without its masks of classes.

        A patch's feature is the last block's with attention to the patch itself alone. Then each
        becomes a weighted mean of all, which refines the scores of patches in the same way, because
        they are linear in the features. The means are not of unit length: where patches disagree,
        scores are lower.
        """
        visual = self.model.visual
        hidden = visual._embeds(pixels)
        *earlier, last = visual.transformer.resblocks
        vote = AttentionVote(len(earlier) + 1)
        for block in earlier:
            normed = block.ln_1(hidden)
            attended, weights = block.attn(normed, normed, normed)  # the mean over heads
            vote.add(weights[:, 1:, 1:])
            hidden = hidden + block.ls_1(attended)
            hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        patches = hidden[:, 1:]
        patches = patches + last.ls_1(_values(last, patches))
        patches = patches + last.ls_2(last.mlp(last.ln_2(patches)))
        patches = F.normalize(visual.ln_post(patches) @ visual.proj, dim=-1)
        pooled = visual.ln_post(last(hidden)[:, 0]) @ visual.proj
        return F.normalize(pooled, dim=-1), vote.result() @ patches

    def text_features(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The pooled feature is at EOS; the tokens are those from SOS to EOS, both included."""
        ids, ends = self._tokenize(texts)
        features = self._text_tower(self.model.token_embedding(ids))
        # By position, not by id: the padding's id 0 is also a real token, the "!" of "!?".
        positions = torch.arange(features.shape[1], device=features.device)
        return _at(features, ends), features, positions <= ends[:, None]

    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        """Prompts `SOS | context | name . | EOS` to `(names, dim)`, not normalised.

        `context`: `(names, tokens, context_width)`, which gradients reach (CoOp, arXiv 2109.01134,
        §3.2: class-specific context is the general case, shared context is an expanded tensor).

        Raises:
            ValueError: for a prompt longer than the text tower's context.
        """
        ids, ends = self._tokenize([f"{name}." for name in names])
        tokens = context.shape[1]
        longest = int(ends.argmax())
        self.check_length(int(ends[longest]) + tokens + 1, names[longest])
        words = self.model.token_embedding(ids)
        embeddings = torch.cat([words[:, :1], context, words[:, 1:]], dim=1)
        return _at(self._text_tower(embeddings), ends + tokens)

    def prompt_words(self, names: list[str]) -> tuple[list[int], list[list[int]]]:
        ids, ends = self._tokenize([f"{name}." for name in names])
        start = int(ids[0, 0])
        return [start], [
            row[1 : end + 1] for row, end in zip(ids.tolist(), ends.tolist(), strict=True)
        ]

    def embed_words(self, ids: Tensor) -> Tensor:
        return self.model.token_embedding(ids)

    def check_length(self, tokens: int, name: str) -> None:
        refuse_longer(tokens, self.model.context_length, name, self.identity.model)

    def encode_tree(self, tokens: Tensor, tree: PromptTree) -> Tensor:
        mask = torch.zeros_like(tree.seen, dtype=tokens.dtype).masked_fill_(~tree.seen, -math.inf)
        hidden = (tokens + self.model.positional_embedding[tree.positions])[None]
        *earlier, last = self.model.transformer.resblocks
        for block in earlier:
            hidden = block(hidden, attn_mask=mask)
        # Only the prompts' ends are read from the last block; they attend to all tokens.
        normed = last.ln_1(hidden)
        attended = last.attention(normed[:, tree.ends], normed, normed, mask[tree.ends])
        ends = hidden[:, tree.ends] + last.ls_1(attended)
        ends = ends + last.ls_2(last.mlp(last.ln_2(ends)))
        return self.model.ln_final(ends[0]) @ self.model.text_projection

    def _tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids `(texts, longest)`, padded with zeros, and the position of each EOS `(texts,)`."""
        ids = self.tokenizer(texts).to(self.device)
        ends = ids.argmax(-1)  # EOS has the highest id; open_clip pools there too
        return ids[:, : int(ends.max()) + 1], ends

    def _text_tower(self, embeddings: Tensor) -> Tensor:
        """Token embeddings `(texts, tokens, width)` to `(texts, tokens, dim)`.

        The mask is causal, so cutting the padding changes no feature up to EOS.
        """
        tokens = embeddings.shape[1]
        hidden = self.model.transformer(
            embeddings + self.model.positional_embedding[:tokens],
            attn_mask=self.model.attn_mask[:tokens, :tokens],
        )
        return self.model.ln_final(hidden) @ self.model.text_projection


class AttentionVote:
    """What TagCLIP refines the scores of patches with (arXiv 2312.12828, §3.2), rows add to 1.

    The mean attention of the last layers, masked to where enough layers attend more than they do on
    average. Its released code takes three of ViT-B's twelve layers and asks for four votes; other
    depths take the same shares here. Layers are added one by one: all at once would take gigabytes.
    """

    def __init__(self, layers: int) -> None:
        """`layers`: of the whole tower, with the last, in which each patch is alone."""
        self._layers = layers
        self._added = 0
        self._votes: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, weights: Tensor) -> None:
        """The next layer's attention of patches to patches, `(batch, patches, patches)`."""
        votes = (weights > weights.mean((-2, -1), keepdim=True)).to(torch.uint8)
        self._votes = votes if self._votes is None else self._votes + votes
        if self._added >= self._layers - 1 - max(1, self._layers // 4):
            self._sum = weights if self._sum is None else self._sum + weights
        self._added += 1

    def result(self) -> Tensor:
        """`(batch, patches, patches)`, once all layers but the last are added."""
        assert self._votes is not None and self._sum is not None
        alone = torch.eye(self._sum.shape[-1], device=self._sum.device, dtype=self._sum.dtype)
        votes = self._votes + alone.to(torch.uint8)
        kept = self._sum * (votes >= max(1, self._layers // 3))
        total = kept.sum(-1, keepdim=True)
        return torch.where(total > 0, kept / total, alone)


def _values(block: Any, tokens: Tensor) -> Tensor:
    """What a block's attention adds to tokens that attend to themselves alone."""
    weight = block.attn.in_proj_weight.chunk(3)[2]
    bias = block.attn.in_proj_bias.chunk(3)[2]
    return block.attn.out_proj(F.linear(block.ln_1(tokens), weight, bias))


def _at(features: Tensor, positions: Tensor) -> Tensor:
    """The row of `(texts, tokens, dim)` at each text's position: `(texts, dim)`."""
    return features[torch.arange(len(features), device=features.device), positions]


def _resize_positions(tower: nn.Module, side: int) -> None:
    """Interpolate an image tower's positional embeddings `(1 + grid², width)` to `side²` places.

    As open_clip does it for ViTs; it has nothing for the attention pool of ResNets.
    """
    positions = tower.get_parameter("positional_embedding").detach()
    grid = math.isqrt(len(positions) - 1)
    if grid == side:
        return
    square = positions[1:].T.reshape(1, -1, grid, grid)
    resized = F.interpolate(
        square, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    places = resized.flatten(2)[0].T
    tower.positional_embedding = nn.Parameter(torch.cat([positions[:1], places]))


def _is_resnet(config: dict[str, Any]) -> bool:
    return isinstance(config["vision_cfg"]["layers"], list)


def _stride(config: dict[str, Any]) -> int:
    """How many pixels of a side make one location."""
    return _RESNET_STRIDE if _is_resnet(config) else config["vision_cfg"]["patch_size"]
