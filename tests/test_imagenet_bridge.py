"""The embedded model: its formulas, and real photos through its real weights."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.backbones.efficientnet_lite import SCALES, EfficientNetLite
from prompt_tuning.backbones.imagenet_bridge import ImageNetBridge
from prompt_tuning.backbones.noun_phrases import noun_phrases
from prompt_tuning.datasets.stamps import stamp_files
from prompt_tuning.tuning.scoring import branch_scores, fuse

# What ImageNet calls these categories of the scenes.
SEEN_BY_IMAGENET = {
    "tiger": "tiger",
    "elephant": "elephant",
    "zebra": "zebra",
    "penguin": "penguin",
    "lemon": "lemon",
    "strawberry": "strawberry",
    "hot air balloon": "balloon",
    "violin": "violin",
    "pineapple": "pineapple",
    "hammer": "hammer",
}


@pytest.fixture(scope="module")
def larger_vlm(lasting_cache: Path) -> VLM:
    settings = VLMSettings(model="efficientnet-lite2+minilm", resolution=320)
    return load_vlm(settings, cache=lasting_cache)


@pytest.fixture(scope="module")
def photos(stamps: Path) -> dict[str, Image.Image]:
    """Category of the scenes -> its first cut-out on a plain background."""
    return {name: on_plain_ground(stamps / files[0]) for name, files in stamp_files().items()}


def on_plain_ground(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        stamp = opened.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    side = round(1.3 * max(stamp.size))
    photo = Image.new("RGBA", (side, side), (205, 200, 190, 255))
    photo.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    return photo


def random_pixels(vlm: VLM, batch: int) -> torch.Tensor:
    size = vlm.identity.resolution
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def unit_length(features: torch.Tensor) -> bool:
    return torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-5)


@pytest.mark.parametrize("model", list(SCALES))
@pytest.mark.parametrize("side", [224, 100])  # 100: maps with odd sides, which are padded otherwise
def test_the_image_tower_is_timms(model: str, side: int) -> None:
    weights, _ = ImageNetBridge.weight_files(VLMSettings(model=f"{model}+minilm"))
    reference = timm.create_model(f"tf_{model.replace('-', '_')}").eval()
    packaged = torch.load(weights, weights_only=True).values()  # other names, the same order
    reference.load_state_dict(dict(zip(reference.state_dict(), packaged, strict=True)))
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        located = EfficientNetLite(model, weights)(pixels)
        assert located.shape == (2, math.ceil(side / 32) ** 2, 1000)
        torch.testing.assert_close(located.mean(1), reference(pixels), atol=5e-5, rtol=0)


def test_image_features_follow_the_formula(embedded_vlm: VLM) -> None:
    pixels = random_pixels(embedded_vlm, 2)
    features = embedded_vlm.encode_image(pixels)
    assert features.counts.tolist() == [49, 49]
    assert features.pooled.shape == (2, 384)
    assert features.regions.shape == (98, 384)
    assert unit_length(features.pooled)
    assert unit_length(features.regions)
    logits = embedded_vlm.image_tower(pixels)
    of_one_location = logits[1, 30].double().numpy()
    z = (of_one_location - of_one_location.mean()) / of_one_location.std(ddof=1)
    weights = np.maximum(z - 2, 0)
    expected = weights @ embedded_vlm.imagenet_texts.double().numpy()
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(features.regions[49 + 30].numpy(), expected, atol=1e-5)


def test_preprocessing_stretches_and_scales(embedded_vlm: VLM) -> None:
    image = Image.new("RGB", (90, 30), (255, 0, 127))
    image.paste((0, 0, 0), (45, 0, 90, 30))
    pixels = embedded_vlm.preprocess(image)
    assert pixels.shape == (3, 224, 224)
    left, right = pixels[:, 100, 20], pixels[:, 100, 200]
    torch.testing.assert_close(left, torch.tensor([1.0, -1.0, 127 / 127.5 - 1]))
    assert right.tolist() == [-1, -1, -1]
    grey = embedded_vlm.preprocess(Image.new("L", (8, 8), 255))
    assert (grey == 1).all()


def test_texts_are_centred_and_of_unit_length(embedded_vlm: VLM) -> None:
    texts = ["a photo of a dog.", "A zebra drinks from a river.", "x"]
    encoded = embedded_vlm.encode_text(texts)
    assert unit_length(encoded)
    expected = F.normalize(embedded_vlm._embed(texts) - embedded_vlm.centre, dim=-1)
    torch.testing.assert_close(encoded, expected)
    # Before centring, any two texts are alike; the mean of many centred ones is near zero.
    assert float(embedded_vlm.centre.norm()) > 0.3
    assert float(embedded_vlm.imagenet_texts.mean(0).norm()) < 0.1
    assert unit_length(embedded_vlm.imagenet_texts)


def test_texts_encode_alike_in_any_company(embedded_vlm: VLM) -> None:
    texts = ["a dog", "a very long sentence about nothing at all, only to be long", "cat"]
    together = embedded_vlm.encode_text(texts)
    for row, text in enumerate(texts):
        alone = embedded_vlm.encode_text([text])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


def test_the_text_tower_is_that_of_transformers(
    embedded_vlm: VLM, embedded_settings: VLMSettings
) -> None:
    folder = ImageNetBridge.weight_files(embedded_settings)[1].parent
    tokenize = AutoTokenizer.from_pretrained(folder)
    reference = BertModel.from_pretrained(folder).eval()
    texts = ["a dog", "A naïve CAFÉ-owner paints 7 zebras; 猫!", "very " * 200 + "long", ""]
    tokens = tokenize(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden = reference(**tokens).last_hidden_state
    expected = F.normalize((hidden * tokens.attention_mask.unsqueeze(-1)).sum(1), dim=-1)
    ids, mask = embedded_vlm.text_tower.tokens(texts)
    assert torch.equal(ids, tokens.input_ids)
    actual = embedded_vlm.text_tower(embedded_vlm.text_tower.words(ids), mask)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_captions_have_their_sentence_and_their_phrases(embedded_vlm: VLM) -> None:
    captions = ["A brown horse stands on the green grass.", "On it.", "A dog and a brown horse."]
    features = embedded_vlm.encode_captions(captions)
    assert [noun_phrases(caption) for caption in captions] == [
        ["brown horse", "green grass"],
        [],
        ["dog", "brown horse"],
    ]
    assert features.counts.tolist() == [2, 1, 2]
    # A caption without a phrase stands for itself.
    phrases = ["brown horse", "green grass", "On it.", "dog", "brown horse"]
    for actual, texts in ((features.pooled, captions), (features.regions, phrases)):
        expected = [as_image(embedded_vlm, text) for text in texts]
        torch.testing.assert_close(actual, torch.stack(expected), atol=1e-4, rtol=0)


def as_image(vlm: VLM, text: str) -> Tensor:
    """A text as a mixture of the ImageNet classes that it is near to, class by class."""
    (encoded,) = vlm.encode_text([text])
    cosines = [float(encoded @ of_class) for of_class in vlm.imagenet_texts]
    mean, deviation = statistics.mean(cosines), statistics.stdev(cosines)
    mixture = torch.zeros(vlm.dim)
    for cosine, of_class in zip(cosines, vlm.imagenet_texts, strict=True):
        mixture += max(0.0, (cosine - mean) / deviation - 2) * of_class
    return mixture / mixture.norm()


def test_identity_is_stable_and_tells_models_and_resolutions_apart(
    embedded_vlm: VLM, larger_vlm: VLM, embedded_settings: VLMSettings, lasting_cache: Path
) -> None:
    assert load_vlm(embedded_settings, cache=lasting_cache).identity == embedded_vlm.identity
    at_256 = load_vlm(embedded_settings.model_copy(update={"resolution": 256}), cache=lasting_cache)
    assert at_256.identity != embedded_vlm.identity
    assert at_256.identity.weights == embedded_vlm.identity.weights
    assert larger_vlm.identity.weights != embedded_vlm.identity.weights


def test_anchors_from_the_cache_are_those_that_were_computed(
    embedded_vlm: VLM, tmp_path: Path
) -> None:
    info = ImageNetInfo("imagenet-1k")
    some = [0, 340, 999]
    short = embedded_vlm._embed(
        [f"a photo of a {info.index_to_description(k).split(',')[0]}." for k in some]
    )
    long = embedded_vlm._embed([info.index_to_description(k, detailed=True) for k in some])
    anchors = F.normalize(short + long, dim=-1)
    expected = F.normalize(anchors - embedded_vlm.centre, dim=-1)
    torch.testing.assert_close(embedded_vlm.imagenet_texts[some], expected, atol=1e-5, rtol=0)


def test_both_towers_compute_in_float32(embedded_vlm: VLM) -> None:
    weights = embedded_vlm.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_all_weights_are_frozen(embedded_vlm: VLM) -> None:
    assert not any(parameter.requires_grad for parameter in embedded_vlm.parameters())
    assert not any(module.training for module in embedded_vlm.modules())


def test_settings_that_no_embedded_model_follows_are_refused(
    embedded_settings: VLMSettings,
) -> None:
    with pytest.raises(
        ValueError, match="'RN50' is not an embedded model; there are: efficientnet"
    ):
        ImageNetBridge.check_settings(VLMSettings(model="RN50"))
    with pytest.raises(ValueError, match="only go with"):
        ImageNetBridge.check_settings(VLMSettings(pretrained="openai"))
    assert all(path.is_file() for path in ImageNetBridge.weight_files(embedded_settings))


def test_known_photos_get_sensible_imagenet_classes(
    larger_vlm: VLM, photos: dict[str, Image.Image]
) -> None:
    info = ImageNetInfo("imagenet-1k")
    pixels = torch.stack([larger_vlm.preprocess(photos[name]) for name in SEEN_BY_IMAGENET])
    top = larger_vlm.image_tower(pixels).mean(1).topk(5).indices.tolist()
    guesses = {
        name: ", ".join(info.index_to_description(k) for k in best)
        for name, best in zip(SEEN_BY_IMAGENET, top, strict=True)
    }
    wrong = {
        name: guesses[name] for name, word in SEEN_BY_IMAGENET.items() if word not in guesses[name]
    }
    assert wrong == {}


def test_zero_shot_ranks_the_right_one_of_44_categories_high(
    larger_vlm: VLM, photos: dict[str, Image.Image]
) -> None:
    names = list(photos)
    classes = larger_vlm.encode_text([f"a photo of a {name}." for name in names])
    pixels = torch.stack([larger_vlm.preprocess(photo) for photo in photos.values()])
    images = larger_vlm.encode_image(pixels)
    geometry = larger_vlm.geometry
    scores = fuse(*branch_scores(images, classes, classes, geometry), geometry)
    ranks = (scores > scores.diag()[:, None]).sum(1) + 1
    assert int((ranks <= 3).sum()) >= 38
    assert int((ranks == 1).sum()) >= 30
