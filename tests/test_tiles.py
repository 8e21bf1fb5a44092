"""Tiles: what is cut, what is encoded, and where it lies in the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import build_config
from orchestrator.plan.run import make_plan
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VIEWS_PER_BATCH, VLM, VLMSettings
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.tagger import Tagger
from prompt_tuning.tiles import over_the_image, view_boxes


@pytest.fixture(scope="module")
def tiled_vlm(embedded_settings: VLMSettings, lasting_cache: Path) -> VLM:
    return load_vlm(embedded_settings.model_copy(update={"tiles": (2, 3)}), cache=lasting_cache)


def test_tiles_cover_the_image_and_neighbours_overlap_by_a_third() -> None:
    whole, *tiles = view_boxes((2,))
    assert whole == (0, 0, 1, 1)
    np.testing.assert_allclose(
        tiles, [(0, 0, 0.6, 0.6), (0.4, 0, 1, 0.6), (0, 0.4, 0.6, 1), (0.4, 0.4, 1, 1)]
    )
    finer = np.array(view_boxes((2, 3))[5:])
    assert len(finer) == 9
    assert finer.min() == 0
    assert finer.max() == 1
    np.testing.assert_allclose(finer[0, 2] - finer[1, 0], (finer[0, 2] - finer[0, 0]) / 3)


def test_each_view_is_a_part_of_the_image_by_itself(tiled_vlm: VLM, embedded_vlm: VLM) -> None:
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (10, 10, 3), dtype=np.uint8))
    image = coarse.resize((500, 300), Image.Resampling.BICUBIC)
    pixels = tiled_vlm.preprocess(image)
    assert pixels.shape == (1 + 4 + 9, 3, 224, 224)
    parts = [image, image.crop((200, 0, 500, 180))]  # the second tile of 2 × 2
    alone = torch.stack([embedded_vlm.preprocess(part) for part in parts])
    assert torch.equal(pixels[0], alone[0])
    torch.testing.assert_close(pixels[2], alone[1], atol=0.02, rtol=0)

    both = tiled_vlm.encode_image(torch.stack([pixels, pixels.flip(0)]))
    assert both.counts.tolist() == [14 * 49, 14 * 49]
    expected = embedded_vlm.encode_image(pixels)
    torch.testing.assert_close(both.pooled, expected.pooled[[0, -1]], atol=1e-5, rtol=0)
    assert both.tiles is not None
    torch.testing.assert_close(both.tiles[0], expected.pooled[1:], atol=1e-5, rtol=0)
    of_first, of_second = both.regions.chunk(2)
    torch.testing.assert_close(of_first, expected.regions, atol=1e-5, rtol=0)
    reversed_views = expected.regions.unflatten(0, (14, 49)).flip(0).flatten(0, 1)
    torch.testing.assert_close(of_second, reversed_views, atol=1e-5, rtol=0)


def test_tiles_change_what_is_made_of_images_and_nothing_else(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    (photos / "labels.csv").write_text("a.png,dog\n", "utf-8")

    def keys(**vlm: object) -> dict[str, list[str]]:
        raw = {
            "name": "own",
            "paths": {"cache": str(tmp_path / "cache")},
            "categories": ["dog", "cat"],
            "captions": {"templates": True},
            "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
            "vlm": vlm,
            "evaluation": {"dataset": "folder", "root": str(photos)},
        }
        plan = make_plan(build_config(raw, tmp_path / "own.yaml"), Resources((Node(2, 0),)), None)
        found: dict[str, list[str]] = {}
        for stage in plan.stages:
            found.setdefault(stage.name, []).append(stage.key)
        return found

    whole, tiled = keys(), keys(tiles=[2])
    changed = {name for name in whole if whole[name] != tiled[name]}
    assert changed == {"image_features", "evaluation"}
    assert whole.keys() > {"caption_features", "hierarchy", "tuning", "images"}


@pytest.mark.parametrize("wrong", [[3, 2], [2, 2], [1], [5]])
def test_tiles_that_mean_nothing_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValidationError):
        VLMSettings(tiles=tuple(wrong))


def test_a_batch_has_about_as_many_views_with_tiles_as_without(
    tiled_vlm: VLM, embedded_vlm: VLM
) -> None:
    assert embedded_vlm.images_per_batch == VIEWS_PER_BATCH["cpu"] == 4
    assert tiled_vlm.images_per_batch == 1
    # So workers that get whole batches of images without tiles get whole batches with them.
    assert VIEWS_PER_BATCH["cpu"] % tiled_vlm.images_per_batch == 0


def test_texts_do_not_depend_on_tiles(tiled_vlm: VLM, embedded_vlm: VLM) -> None:
    assert torch.equal(tiled_vlm.encode_text(["a dog"]), embedded_vlm.encode_text(["a dog"]))
    assert tiled_vlm.identity != embedded_vlm.identity


def test_maps_of_views_are_laid_over_the_image_and_keep_their_sums() -> None:
    maps = torch.rand(3, 1 + 4, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = over_the_image(maps, (2,))
    assert whole.shape == (3, 9, 9)
    torch.testing.assert_close(whole.sum((1, 2)), maps.sum((1, 2, 3)))
    torch.testing.assert_close(over_the_image(maps[:, :1], ()), maps[:, 0])
    corner = torch.zeros(1, 5, 5, 5)
    corner[0, 4, 4, 4] = 1  # the last location of the last tile
    laid = over_the_image(corner, (2,))[0]
    assert laid[-1, -1] > 0.7
    assert laid[:7, :].sum() == laid[:, :7].sum() == 0


def test_a_tagger_with_tiles_finds_a_small_thing_where_it_is(
    tiled_vlm: VLM, artifact: Path, stamps: Path
) -> None:
    loaded = Artifact.load(artifact)
    with pytest.raises(ValueError, match="differs in preprocessing"):
        Tagger(loaded, tiled_vlm)
    vars(loaded)["vlm"] = tiled_vlm.identity
    tagger = Tagger(loaded, tiled_vlm)
    canvas = Image.new("RGB", (480, 480), (120, 155, 85))
    (stamp, *_) = sorted(stamps.rglob("*elephant*.png"))
    thing = Image.open(stamp).convert("RGBA").resize((100, 100))
    canvas.paste(thing, (340, 340), thing)
    label = tagger.names.index("elephant")
    maps = tagger.heat_maps(canvas)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-4)
    rows, columns = np.unravel_index(maps[label].argmax(), maps[label].shape)
    assert min(rows, columns) >= 0.6 * len(maps[label])
    without = Image.new("RGB", (480, 480), (120, 155, 85))
    [shown, not_shown] = tagger.scores([canvas, without])[:, label]
    assert shown > not_shown
