"""SigLIP backbones on small random checkpoints, with a small tokenizer written here: no hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from test_clip import close, random_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prompt_tuning.backbones import backbone_class, fetch_weights, load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.backbones.siglip import SigLIP

WORDS = "a photo of dog hot fire hydrant two cats sleep on the old sofa wait".split()
VOCABULARY = ["<pad>", "</s>", "<unk>", *WORDS, *(f"▁{word}" for word in WORDS)]
CAPTIONS = ["a dog", "Two cats sleep on the old sofa.", "wait!? a hot dog!!", ""]
COUNTS = [3, 8, 5, 1]  # words and EOS
CONTEXT = 16
TEXT = {
    "context_length": CONTEXT,
    "vocab_size": len(VOCABULARY),
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 32,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
VISION = {
    "image_size": 32,
    "timm_model_name": "vit_tiny_patch8_siglip_32",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
}
MODELS: dict[str, dict[str, Any]] = {
    "tiny-ViT-SigLIP": {},
    "tiny-ViT-SigLIP2": {"act_kwargs": {"approximate": "tanh"}},
}


@timm.models.register_model
def vit_tiny_patch8_siglip_32(
    pretrained: bool, pretrained_cfg: Any, pretrained_cfg_overlay: Any, cache_dir: Any, **more: Any
) -> VisionTransformer:
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, class_token=False, **more
    )


def save_tokenizer(folder: Path, second: bool) -> None:
    """A word is a token and EOS ends each text, as in SigLIP's (T5's) and SigLIP 2's (Gemma's).

    The first pads with EOS and puts a space before each text; the second does neither.
    """
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never" if second else "always")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>" if second else "</s>",
    ).save_pretrained(folder)


def add_model(folder: Path, name: str, text: dict[str, Any], **changes: Any) -> None:
    config = {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": VISION,
        "text_cfg": TEXT | text,
    }
    (folder / f"{name}.json").write_text(json.dumps(config | changes))
    open_clip.add_model_config(folder / f"{name}.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random state dicts `<model>.safetensors` and `.pt`; the models are registered."""
    folder = tmp_path_factory.mktemp("siglip")
    for name, text in MODELS.items():
        tokenizer = folder / f"{name}-tokenizer"
        save_tokenizer(tokenizer, second=name == "tiny-ViT-SigLIP2")
        add_model(folder, name, {"hf_tokenizer_name": str(tokenizer)} | text)
        state = random_model(name).state_dict()
        save_file(state, folder / f"{name}.safetensors")
        torch.save(state, folder / f"{name}.pt")
    return folder


def settings(checkpoints: Path, name: str, ending: str = "safetensors", **more: Any) -> VLMSettings:
    given: dict[str, Any] = {
        "kind": "open_clip",
        "model": name,
        "pretrained": str(checkpoints / f"{name}.{ending}"),
        "quick_gelu": False,
        "resolution": 32,
    }
    return VLMSettings(**given | more)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, checkpoints: Path) -> tuple[SigLIP, Any]:
    """The backbone under test and open_clip's own model of the same weights."""
    vlm = load_vlm(settings(checkpoints, request.param))
    assert isinstance(vlm, SigLIP)
    return vlm, random_model(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- images


def test_global_feature_is_open_clips_own(pair: tuple[SigLIP, Any]) -> None:
    vlm, reference = pair
    with torch.no_grad():
        expected = reference.encode_image(some_pixels(), normalize=True)
    close(vlm.encode_image(some_pixels()).pooled, expected)


def test_local_feature_is_the_pool_of_one_patch(pair: tuple[SigLIP, Any]) -> None:
    vlm, reference = pair
    trunk = reference.visual.trunk
    with torch.no_grad():
        patches = trunk.forward_features(some_pixels()).flatten(0, 1)
        alone = torch.cat([trunk.forward_head(patch[None, None]) for patch in patches])
    features = vlm.encode_image(some_pixels())
    close(features.regions, F.normalize(alone, dim=-1))
    assert features.counts.tolist() == [16] * 3


def test_preprocess_resizes_straight_and_normalises(checkpoints: Path) -> None:
    vlm = SigLIP(settings(checkpoints, "tiny-ViT-SigLIP"))
    grey = Image.fromarray(np.full((20, 90), 51, dtype=np.uint8))
    close(vlm.preprocess(grey), torch.full((3, 32, 32), -0.6))
    # Left half black, right half white: nothing is cropped away from a wide image.
    halves = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 200, axis=1))
    bright = vlm.preprocess(halves)[0] > 0
    assert bright[:, 16:].all()
    assert not bright[:, :16].any()


# --- texts


def test_text_feature_is_open_clips_own(pair: tuple[SigLIP, Any]) -> None:
    vlm, reference = pair
    texts = [*CAPTIONS, "dog " * 100]
    with torch.no_grad():
        expected = reference.encode_text(open_clip.get_tokenizer(vlm.identity.model)(texts))
    close(vlm.encode_text(texts), expected)


def test_text_batches_change_nothing(
    pair: tuple[SigLIP, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, _ = pair
    whole, features = vlm.encode_text(CAPTIONS), vlm.encode_captions(CAPTIONS)
    monkeypatch.setattr("prompt_tuning.backbones.open_clip_vlm._TEXT_BATCH", 3)
    close(vlm.encode_text(CAPTIONS), whole)
    for actual, expected in zip(vlm.encode_captions(CAPTIONS), features, strict=True):
        close(actual, expected)


def test_captions_are_ragged_token_features(pair: tuple[SigLIP, Any]) -> None:
    vlm, reference = pair
    features = vlm.encode_captions([*CAPTIONS, "dog " * 100])
    counts = [*COUNTS, CONTEXT]
    assert features.counts.tolist() == counts
    ids = open_clip.get_tokenizer(vlm.identity.model)([*CAPTIONS, "dog " * 100])
    reference.text.output_tokens = True
    with torch.no_grad():
        pooled, tokens = reference.text(ids)
        expected = [
            reference.text.text_projection(tokens[caption, position])
            for caption, count in enumerate(counts)
            for position in range(count)
        ]
    reference.text.output_tokens = False
    close(features.pooled, F.normalize(pooled, dim=-1))
    close(features.regions, F.normalize(torch.stack(expected), dim=-1))


def test_prompt_of_real_words_is_the_sentence(pair: tuple[SigLIP, Any]) -> None:
    vlm, _ = pair
    names = ["dog", "fire hydrant", "hot dog"]
    words = vlm.tokenizer.tokenizer("a photo of a", add_special_tokens=False).input_ids
    context = vlm.text.token_embedding(torch.tensor(words)).expand(len(names), -1, -1)
    prompts = vlm.encode_prompts(context, names)
    close(prompts, vlm.encode_text([f"a photo of a {name}." for name in names]))


def test_gradient_reaches_every_context_token(pair: tuple[SigLIP, Any]) -> None:
    vlm, _ = pair
    start = vlm.initial_context(5)
    assert start.shape == (5, vlm.context_width)
    context = (start.expand(2, -1, -1) + 0.02 * torch.randn(2, 5, 32)).requires_grad_()
    vlm.encode_prompts(context, ["dog", "hot dog"]).square().sum().backward()
    assert context.grad is not None
    assert (context.grad.abs().amax(-1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in vlm.parameters())
    assert not vlm.training


def test_too_long_prompt_names_the_category(pair: tuple[SigLIP, Any]) -> None:
    vlm, _ = pair
    full = vlm.initial_context(CONTEXT - 2)
    vlm.encode_prompts(full.expand(1, -1, -1), ["dog"])
    with pytest.raises(ValueError, match="prompts: 17 tokens with the category 'hot dog' exceed"):
        vlm.encode_prompts(full.expand(2, -1, -1), ["dog", "hot dog"])


# --- weights, tokenizer and identity


def test_both_file_formats_load_the_same(checkpoints: Path) -> None:
    one = SigLIP(settings(checkpoints, "tiny-ViT-SigLIP"))
    other = SigLIP(settings(checkpoints, "tiny-ViT-SigLIP", "pt"))
    assert torch.equal(
        one.encode_image(some_pixels()).regions, other.encode_image(some_pixels()).regions
    )
    assert one.identity.weights != other.identity.weights  # of the file's content
    assert one.identity == SigLIP(settings(checkpoints, "tiny-ViT-SigLIP")).identity
    assert one.identity.dim == 24


def test_checkpoint_of_another_model_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"^vlm\.pretrained .* not a safe checkpoint of [^\n]*$"):
        SigLIP(settings(checkpoints, "tiny-ViT-SigLIP", pretrained=str(path)))


def test_a_missing_tokenizer_is_one_line(checkpoints: Path) -> None:
    fetch_weights(settings(checkpoints, "tiny-ViT-SigLIP"))
    nowhere = str(checkpoints / "nowhere")
    add_model(checkpoints, "tiny-ViT-SigLIP-mute", {"hf_tokenizer_name": nowhere})
    mute = settings(checkpoints, "tiny-ViT-SigLIP").model_copy(
        update={"model": "tiny-ViT-SigLIP-mute"}
    )
    for use in (fetch_weights, SigLIP):
        with pytest.raises(ValueError, match=r"^vlm\.model: the tokenizer '.*nowhere' [^\n]*$"):
            use(mute)


def test_weights_that_cannot_be_downloaded_are_one_line(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"url": (checkpoints / "nowhere.pt").as_uri()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ViT-SigLIP", {"mine": tag})
    with pytest.raises(
        ValueError, match=r"^vlm\.pretrained: 'mine' of tiny-ViT-SigLIP cannot [^\n]*$"
    ):
        fetch_weights(settings(checkpoints, "tiny-ViT-SigLIP", pretrained="mine", quick_gelu=None))


# --- what is refused before anything is loaded


def refusal(model: str, tag: str, resolution: int) -> str | None:
    given = VLMSettings(kind="open_clip", model=model, pretrained=tag, resolution=resolution)
    try:
        backbone_class(given).check_settings(given)
    except ValueError as error:
        return str(error)
    return None


def test_each_siglip_of_open_clip_is_right_or_refused_in_one_line() -> None:
    refused = set()
    for model, tag in open_clip.list_pretrained():
        if "siglip" not in model.lower():
            continue
        vision = open_clip.get_model_config(model)["vision_cfg"]
        reason = refusal(model, tag, vision["image_size"])
        if reason is not None:
            assert reason.startswith(
                f"vlm.model {model!r} is not supported: it is not a plain SigLIP"
            )
            assert "\n" not in reason
            refused.add(model)
            continue
        assert timm.is_model(vision["timm_model_name"])
        # As `preprocess` does.
        preparation = open_clip.get_pretrained_cfg(model, tag)
        assert {*preparation["mean"], *preparation["std"]} == {0.5}
        assert preparation["resize_mode"] == "squash"
        assert preparation["interpolation"] == "bicubic"
    # One without text projection, and two with another text tower.
    assert refused == {
        "ViT-SO400M-16-SigLIP-i18n-256",
        "nllb-clip-base-siglip",
        "nllb-clip-large-siglip",
    }


@pytest.mark.parametrize(
    ("text", "vision", "part"),
    [
        ({"no_causal_mask": False}, {}, "text no_causal_mask"),
        ({"pool_type": "argmax"}, {}, "text pool_type"),
        ({"proj_bias": False}, {}, "text proj_bias"),
        ({"embed_cls": True}, {}, "text embed_cls"),
        ({"tokenizer_kwargs": {"clean": "lower"}}, {}, "text tokenizer_kwargs"),
        ({"hf_model_name": "x"}, {}, "text hf_model_name"),
        ({}, {"timm_pool": "avg"}, "vision timm_pool"),
        ({}, {"timm_proj": "linear"}, "vision timm_proj"),
        ({}, {"timm_model_name": "naflexvit_base_patch16_siglip"}, "vision timm_model_name"),
        ({}, {"timm_model_name": "vit_base_patch16_siglip_gap_224"}, "vision timm_model_name"),
    ],
)
def test_other_towers_are_refused(
    checkpoints: Path, text: dict[str, Any], vision: dict[str, Any], part: str
) -> None:
    add_model(checkpoints, "tiny-foreign", text, vision_cfg=VISION | vision)
    foreign = settings(checkpoints, "tiny-ViT-SigLIP").model_copy(update={"model": "tiny-foreign"})
    with pytest.raises(ValueError, match=rf"it is not a plain SigLIP \({part}\)$"):
        backbone_class(foreign).check_settings(foreign)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "tiny-ViT-SigLlP"},
            "vlm.model 'tiny-ViT-SigLlP' .* did you mean 'tiny-ViT-SigLIP",
        ),
        ({"resolution": 64}, "vlm.resolution must be 32 for tiny-ViT-SigLIP"),
        ({"pretrained": None}, "vlm.pretrained is missing: .* tiny-ViT-SigLIP: there is none"),
        ({"pretrained": "/nowhere.pt"}, "vlm.pretrained '/nowhere.pt' is neither a file"),
        ({"quick_gelu": None}, "vlm.quick_gelu is missing"),
        ({"quick_gelu": True}, "vlm.quick_gelu: .* 'tiny-ViT-SigLIP' computes without it$"),
    ],
)
def test_refusals_name_the_field(checkpoints: Path, changes: dict[str, Any], message: str) -> None:
    given = VLMSettings(**settings(checkpoints, "tiny-ViT-SigLIP").model_dump() | changes)
    for refuse in (SigLIP.check_settings, load_vlm):
        with pytest.raises(ValueError, match=message) as caught:
            refuse(given)
        assert "\n" not in str(caught.value)
