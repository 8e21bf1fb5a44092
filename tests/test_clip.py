"""The open_clip backbone on small random checkpoints: no hub, no trained weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.backbones.clip import CLIP

CONFIGS = Path(__file__).parent.parent / "configs"
CAPTIONS = ["a dog", "two cats sleep on the old sofa.", "wait!? a hot dog!!", ""]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    "tiny-RN-quickgelu": {"vision_cfg": RESNET, "quick_gelu": True},
    "tiny-RN": {"vision_cfg": RESNET},
    "tiny-ViT": {"vision_cfg": VIT},
    "tiny-ViT-scaled": {"vision_cfg": VIT | {"ls_init_value": 0.1}},
    "tiny-SigLIP": {"vision_cfg": VIT, "text_cfg": TEXT | {"no_causal_mask": True}},
}
CLIPS = ("tiny-RN-quickgelu", "tiny-ViT", "tiny-ViT-scaled")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random state dicts `<model>.safetensors` and `.pt`; the models are registered."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in MODELS.items():
        text = json.dumps({"embed_dim": 24, "text_cfg": TEXT} | config)
        (folder / f"{name}.json").write_text(text)
    open_clip.add_model_config(folder)
    for name in CLIPS:
        state = random_model(name).state_dict()
        save_file(state, folder / f"{name}.safetensors")
        torch.save(state, folder / f"{name}.pt")
    return folder


def random_model(name: str) -> torch.nn.Module:
    """Random in every weight: open_clip starts some at 0 or 1, where mistakes would not show."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim < 2:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def settings(checkpoints: Path, name: str, ending: str = "safetensors", **more: Any) -> VLMSettings:
    given: dict[str, Any] = {
        "kind": "open_clip",
        "model": name,
        "pretrained": str(checkpoints / f"{name}.{ending}"),
        "quick_gelu": name.endswith("-quickgelu"),
        "resolution": 64 if "RN" in name else 32,
    }
    return VLMSettings(**given | more)


@pytest.fixture(scope="module", params=CLIPS)
def pair(request: pytest.FixtureRequest, checkpoints: Path) -> tuple[CLIP, Any]:
    """The backbone under test and open_clip's own model of the same weights."""
    vlm = load_vlm(settings(checkpoints, request.param))
    assert isinstance(vlm, CLIP)
    return vlm, random_model(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pixels_for(vlm: CLIP, batch: int = 3) -> Tensor:
    side = vlm.identity.resolution
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# --- images


def test_global_feature_is_open_clips_own(pair: tuple[CLIP, Any]) -> None:
    vlm, reference = pair
    pixels = pixels_for(vlm)
    with torch.no_grad():
        close(vlm.encode_image(pixels).pooled, reference.encode_image(pixels, normalize=True))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["RN50", "RN101", "ViT-B-16", "ViT-L-14"])
def test_openais_architectures_are_open_clips_own(architecture: str, tmp_path: Path) -> None:
    """The sizes of the released models, with random weights."""
    name = f"{architecture}-quickgelu"
    reference = random_model(name)
    save_file(reference.state_dict(), tmp_path / f"{name}.safetensors")
    vlm = load_vlm(settings(tmp_path, name, resolution=224))
    (tmp_path / f"{name}.safetensors").unlink()  # up to 1.7 GB
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image = reference.encode_image(pixels, normalize=True)
        text = reference.encode_text(open_clip.get_tokenizer(name)(CAPTIONS))
    features = vlm.encode_image(pixels)
    close(features.pooled, image)
    locations = {"RN50": 49, "RN101": 49, "ViT-B-16": 196, "ViT-L-14": 256}
    assert features.counts.tolist() == [locations[architecture]] * 2
    torch.testing.assert_close(vlm.encode_text(CAPTIONS), text, rtol=1e-4, atol=1e-5)


def test_local_features_are_the_value_path(pair: tuple[CLIP, Any]) -> None:
    vlm, reference = pair
    pixels = pixels_for(vlm)
    with torch.no_grad():
        naive = naive_resnet if vlm.is_resnet else naive_vit
        expected = [region for image in pixels for region in naive(reference.visual, image)]
    features = vlm.encode_image(pixels)
    close(features.regions, F.normalize(torch.stack(expected), dim=-1))
    assert features.counts.tolist() == [4 if vlm.is_resnet else 16] * 3


def naive_resnet(visual: Any, image: Tensor) -> list[Tensor]:
    """Location by location, the projections written out."""
    x = visual.stem(image[None])
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool, (height, width) = visual.attnpool, x.shape[2:]
    regions = []
    for row in range(height):
        for column in range(width):
            value = pool.v_proj.weight @ x[0, :, row, column] + pool.v_proj.bias
            regions.append(pool.c_proj.weight @ value + pool.c_proj.bias)
    return regions


def naive_vit(visual: Any, image: Tensor) -> list[Tensor]:
    """A patch that attends to itself alone, in a last block without residual and MLP."""
    x = visual._embeds(image[None])
    *earlier, last = visual.transformer.resblocks
    for block in earlier:
        x = block(x)
    regions = []
    for patch in range(1, x.shape[1]):
        alone = last.ln_1(x[:, patch : patch + 1])
        attended = last.ls_1(last.attn(alone, alone, alone, need_weights=False)[0])
        regions.append(visual.ln_post(attended)[0, 0] @ visual.proj)
    return regions


def test_refined_patches_have_the_scores_of_tagclip(checkpoints: Path) -> None:
    """Scores refined by the paper's formulas, patch by patch (arXiv 2312.12828, §3.2), but with
    rows of the attention that add to 1."""
    name, classes = "tiny-ViT", 5
    vlm = CLIP(settings(checkpoints, name).model_copy(update={"patches": "refined"}))
    assert vlm.identity != CLIP(settings(checkpoints, name)).identity
    pixels = pixels_for(vlm)
    drawn = torch.randn(classes, vlm.dim, generator=torch.Generator().manual_seed(3))
    texts = F.normalize(drawn, dim=-1)
    features = vlm.encode_image(pixels)
    got = (features.regions @ texts.T).unflatten(0, (len(pixels), -1))
    with torch.no_grad():
        for image, scores in zip(pixels, got, strict=True):
            close(scores, naive_refined(vlm.model.visual, image, texts))
        plain = vlm.model.encode_image(pixels, normalize=True)
    close(features.pooled, plain)


def naive_refined(visual: Any, image: Tensor, texts: Tensor) -> Tensor:
    x = visual._embeds(image[None])
    *earlier, last = visual.transformer.resblocks
    layers = []
    for block in earlier:
        normed, heads = block.ln_1(x), block.attn.num_heads
        query, key, _ = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(
            3, dim=-1
        )
        query, key = (t[0].unflatten(-1, (heads, -1)).transpose(0, 1) for t in (query, key))
        shares = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1).mean(0)
        layers.append(shares[1:, 1:])
        x = block(x)
    layers.append(torch.eye(len(layers[0])))  # the last layer, in which each is alone
    patches = len(layers[0])
    scores = []
    for patch in range(1, x.shape[1]):
        alone = x[:, patch : patch + 1]
        alone = last(alone)  # a sequence of one attends to itself
        feature = F.normalize(visual.ln_post(alone)[0, 0] @ visual.proj, dim=-1)
        scores.append(feature @ texts.T)
    refined = []
    used = layers[:-1][-max(1, len(layers) // 4) :]
    for i in range(patches):
        weights = torch.zeros(patches)
        for j in range(patches):
            votes = sum(bool(layer[i, j] > layer.mean()) for layer in layers)
            if votes >= max(1, len(layers) // 3):
                weights[j] = sum(layer[i, j] for layer in used) / len(used)
        refined.append(sum(weights[j] / weights.sum() * scores[j] for j in range(patches)))
    return torch.stack(refined)


def test_refined_patches_of_other_towers_are_refused(checkpoints: Path) -> None:
    resnet = settings(checkpoints, "tiny-RN-quickgelu", resolution=64)
    for wrong in (resnet, VLMSettings()):
        with pytest.raises(ValueError, match=r"vlm\.patches: refined needs a CLIP ViT \(got"):
            load_vlm(wrong.model_copy(update={"patches": "refined"}))


def test_vit_at_another_resolution_is_open_clips_own(checkpoints: Path) -> None:
    name, resolution = "tiny-ViT", 48
    vlm = CLIP(settings(checkpoints, name, resolution=resolution))
    reference = open_clip.create_model(
        name,
        pretrained=str(checkpoints / f"{name}.safetensors"),
        force_image_size=resolution,
    ).eval()
    pixels = pixels_for(vlm)
    features = vlm.encode_image(pixels)
    with torch.no_grad():
        close(features.pooled, reference.encode_image(pixels, normalize=True))
    assert features.counts.tolist() == [36] * 3


def test_resnet_at_another_resolution(checkpoints: Path) -> None:
    small, large = (
        CLIP(settings(checkpoints, "tiny-RN-quickgelu", resolution=side)) for side in (64, 96)
    )
    assert large.encode_image(pixels_for(large)).counts.tolist() == [9, 9, 9]
    own, resized = (vlm.model.visual.attnpool.positional_embedding for vlm in (small, large))
    close(resized[0], own[0])
    # From 2×2 to 3×3 places the middle one lies between all four.
    close(resized[5], own[1:].mean(0))
    assert large.identity.weights == small.identity.weights
    assert large.identity != small.identity


def test_preprocess_resizes_straight_and_normalises(checkpoints: Path) -> None:
    vlm = CLIP(settings(checkpoints, "tiny-ViT"))
    grey = Image.fromarray(np.full((20, 90), 51, dtype=np.uint8))
    assert vlm.preprocess(grey).shape == (3, 32, 32)
    expected = (0.2 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    )
    close(vlm.preprocess(grey)[:, 7, 7], expected)
    # Left half black, right half white: nothing is cropped away from a wide image.
    halves = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 200, axis=1))
    bright = vlm.preprocess(halves)[0] > 0
    assert bright[:, 16:].all()
    assert not bright[:, :16].any()


def test_images_are_resized_with_the_filter_of_the_settings(checkpoints: Path) -> None:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    bicubic = CLIP(settings(checkpoints, "tiny-ViT"))
    bilinear = CLIP(settings(checkpoints, "tiny-ViT", resize="bilinear"))
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    expected = bilinear.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    close(bilinear.preprocess(image), expected)
    assert (bicubic.preprocess(image) - expected).abs().max() > 0.01
    assert bilinear.identity != bicubic.identity
    assert bilinear.identity.weights == bicubic.identity.weights


# --- texts


def test_text_feature_is_open_clips_own(pair: tuple[CLIP, Any]) -> None:
    vlm, reference = pair
    texts = [*CAPTIONS, "word " * 100]
    with torch.no_grad():
        expected = reference.encode_text(open_clip.get_tokenizer(vlm.identity.model)(texts))
    close(vlm.encode_text(texts), expected)


def test_text_batches_change_nothing(
    pair: tuple[CLIP, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, _ = pair
    whole, features = vlm.encode_text(CAPTIONS), vlm.encode_captions(CAPTIONS)
    monkeypatch.setattr("prompt_tuning.backbones.open_clip_vlm._TEXT_BATCH", 3)
    close(vlm.encode_text(CAPTIONS), whole)
    for actual, expected in zip(vlm.encode_captions(CAPTIONS), features, strict=True):
        close(actual, expected)


def test_captions_are_ragged_token_features(pair: tuple[CLIP, Any]) -> None:
    vlm, reference = pair
    features = vlm.encode_captions(CAPTIONS)
    tokenizer = open_clip.get_tokenizer(vlm.identity.model)
    lengths = [len(tokenizer.encode(caption)) + 2 for caption in CAPTIONS]
    assert features.counts.tolist() == lengths
    assert len(features.regions) == sum(lengths)
    close(features.regions.norm(dim=-1), torch.ones(sum(lengths)))
    with torch.no_grad():
        expected = reference.encode_text(tokenizer(CAPTIONS), normalize=True)
    close(features.pooled, expected)
    of_captions = features.regions.split(lengths)
    close(torch.stack([regions[-1] for regions in of_captions]), features.pooled)
    # A causal tower gives the first words of a longer sentence what it gives the shorter one.
    shorter = vlm.encode_captions(["two cats sleep"]).regions
    close(of_captions[1][:4], shorter[:4])


def test_prompt_of_real_words_is_the_sentence(pair: tuple[CLIP, Any]) -> None:
    vlm, _ = pair
    names = ["dog", "fire hydrant", "traffic light"]
    words = torch.tensor(vlm.tokenizer.encode("a photo of a"))
    context = vlm.model.token_embedding(words).expand(len(names), -1, -1)
    prompts = vlm.encode_prompts(context, names)
    close(prompts, vlm.encode_text([f"a photo of a {name}." for name in names]))


def test_weights_in_half_precision_compute_in_float32(checkpoints: Path, tmp_path: Path) -> None:
    """As OpenAI's are: half precision is slow on most CPUs."""
    half = tmp_path / "half.safetensors"
    save_file(random_model("tiny-ViT").half().state_dict(), half)
    vlm = load_vlm(settings(checkpoints, "tiny-ViT", pretrained=str(half)))
    assert {weight.dtype for weight in vlm.parameters()} == {torch.float32}


def test_gradient_reaches_every_context_token(pair: tuple[CLIP, Any]) -> None:
    vlm, _ = pair
    start = vlm.initial_context(5)
    assert start.shape == (5, vlm.context_width)
    context = (start.expand(2, -1, -1) + 0.02 * torch.randn(2, 5, 32)).requires_grad_()
    vlm.encode_prompts(context, ["dog", "hot dog"]).square().sum().backward()
    assert context.grad is not None
    assert (context.grad.abs().amax(-1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in vlm.parameters())
    assert not vlm.training


def test_too_long_prompt_names_the_category(pair: tuple[CLIP, Any]) -> None:
    vlm, _ = pair
    vlm.encode_prompts(vlm.initial_context(73).expand(1, -1, -1), ["dog"])
    with pytest.raises(ValueError, match="prompts: 78 tokens with the category 'hot dog' exceed"):
        vlm.encode_prompts(vlm.initial_context(73).expand(2, -1, -1), ["dog", "hot dog"])


# --- weights and identity


@pytest.mark.parametrize("name", CLIPS)
def test_both_file_formats_load_the_same(checkpoints: Path, name: str) -> None:
    one = CLIP(settings(checkpoints, name))
    other = CLIP(settings(checkpoints, name, "pt"))
    pixels = pixels_for(one)
    assert torch.equal(one.encode_image(pixels).regions, other.encode_image(pixels).regions)
    assert one.identity.weights != other.identity.weights  # of the file's content
    assert one.identity == CLIP(settings(checkpoints, name)).identity
    assert one.identity.dim == 24
    assert "no crop" in one.identity.preprocessing


def test_a_tags_identity_is_of_its_tensors(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag's download is replaced by local files; the rest of open_clip's way is real."""
    tag: dict[str, Any] = {
        "file": str(checkpoints / "tiny-ViT.pt"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ViT", {"mine": tag})
    of_tag = settings(checkpoints, "tiny-ViT", pretrained="mine", quick_gelu=None)
    one = CLIP(of_tag)
    assert "mean (0.5, 0.5, 0.5)" in one.identity.preprocessing
    white = Image.new("RGB", (32, 32), "white")
    close(one.preprocess(white), torch.full((3, 32, 32), 2.0))
    tag["file"] = str(checkpoints / "tiny-ViT.safetensors")
    assert CLIP(of_tag).identity == one.identity
    state = random_model("tiny-ViT").state_dict()
    state["ln_final.bias"][3] += 1
    tag["file"] = str(checkpoints / "changed.pt")
    torch.save(state, tag["file"])
    assert CLIP(of_tag).identity.weights != one.identity.weights
    with pytest.raises(ValueError, match=r"vlm\.quick_gelu True is wrong"):
        CLIP.check_settings(of_tag.model_copy(update={"quick_gelu": True}))


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_unsafe_pickle_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    path, target = tmp_path / "bad.pt", tmp_path / "executed"
    torch.save({"state_dict": _Malicious(target)}, path)
    with pytest.raises(ValueError, match=r"^vlm\.pretrained .* not a safe checkpoint of [^\n]*$"):
        CLIP(settings(checkpoints, "tiny-ViT", pretrained=str(path)))
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz"])
def test_files_that_are_no_checkpoint_are_refused(
    checkpoints: Path, tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^vlm\.pretrained [^\n]*$"):
        CLIP(settings(checkpoints, "tiny-ViT", pretrained=str(path)))


def test_checkpoint_of_another_model_is_refused(checkpoints: Path) -> None:
    other = str(checkpoints / "tiny-RN-quickgelu.pt")
    with pytest.raises(ValueError, match="not a safe checkpoint of tiny-ViT"):
        CLIP(settings(checkpoints, "tiny-ViT", pretrained=other))


# --- what is refused before anything is loaded

OPENAI = [model for model, tag in open_clip.list_pretrained() if tag == "openai"]


@pytest.mark.parametrize("model", OPENAI)
def test_openais_weights_need_quickgelu(model: str) -> None:
    side = 224 if "ViT" in model else 288
    wanted = VLMSettings(kind="open_clip", model=model, pretrained="openai", resolution=side)
    if model.endswith("-quickgelu"):
        CLIP.check_settings(wanted)
    else:
        with pytest.raises(
            ValueError, match=rf"vlm\.quick_gelu.* use vlm.model: {model}-quickgelu"
        ):
            CLIP.check_settings(wanted)


def refusal(model: str, tag: str) -> str | None:
    side = open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224)
    try:
        CLIP.check_settings(
            VLMSettings(kind="open_clip", model=model, pretrained=tag, resolution=side)
        )
    except ValueError as error:
        return str(error)
    return None


def test_each_model_and_tag_is_right_or_refused_in_one_line() -> None:
    refusals = {pair: refusal(*pair) for pair in open_clip.list_pretrained()}
    accepted = [pair for pair, reason in refusals.items() if reason is None]
    assert len(accepted) > 50
    for model, tag in accepted:
        trained = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
        assert trained == open_clip.get_model_config(model).get("quick_gelu", False)
    for (_, tag), reason in refusals.items():
        if reason is not None:
            assert reason.startswith("vlm.")
            assert "\n" not in reason
            if "QuickGELU" in reason:
                assert (reason.split("vlm.model: ")[1], tag) in accepted


def shipped() -> list[Any]:
    configs = [(path, yaml.safe_load(path.read_text())) for path in sorted(CONFIGS.glob("*.yaml"))]
    return [
        pytest.param(config["vlm"], id=path.name)
        for path, config in configs
        if isinstance(config, dict) and config.get("vlm", {}).get("kind") == "open_clip"
    ]


@pytest.mark.parametrize("written", shipped())
def test_shipped_configs_can_be_loaded(written: dict[str, Any]) -> None:
    CLIP.check_settings(VLMSettings(**written))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tiny-VIT"}, "vlm.model 'tiny-VIT' .* did you mean 'tiny-ViT'"),
        ({"model": "ViT-B/16"}, "vlm.model 'ViT-B/16' .* did you mean 'ViT-B-16'"),
        ({"model": "?"}, "vlm.model '\\?' is not a model of open_clip$"),
        ({"model": "tiny-SigLIP"}, "vlm.model 'tiny-SigLIP' .* \\(text no_causal_mask\\)"),
        ({"model": "ViT-B-16-SigLIP"}, "vlm.model 'ViT-B-16-SigLIP' is not supported"),
        ({"pretrained": None}, "vlm.pretrained is missing: .* tiny-ViT: there is none"),
        ({"model": "RN50", "pretrained": "opnai"}, "vlm.pretrained 'opnai' .* openai, yfcc15m"),
        ({"pretrained": "/nowhere.pt"}, "vlm.pretrained '/nowhere.pt' is neither a file"),
        ({"quick_gelu": None}, "vlm.quick_gelu is missing"),
        ({"quick_gelu": True}, "vlm.quick_gelu: .* 'tiny-ViT' computes without it$"),
        ({"model": "tiny-RN", "quick_gelu": True}, "use vlm.model: tiny-RN-quickgelu$"),
        ({"model": "tiny-RN-quickgelu"}, "use vlm.model: tiny-RN$"),
        ({"resolution": 36}, "vlm.resolution must be a multiple of 8 for"),
    ],
)
def test_refusals_name_the_field(checkpoints: Path, changes: dict[str, Any], message: str) -> None:
    given = settings(checkpoints, "tiny-ViT").model_dump() | changes
    if given["model"] not in ("tiny-ViT", "tiny-SigLIP") and "resolution" not in changes:
        given["resolution"] = 224
    with pytest.raises(ValueError, match=message) as caught:
        CLIP(VLMSettings(**given))
    assert "\n" not in str(caught.value)
