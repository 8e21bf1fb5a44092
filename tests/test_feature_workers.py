"""Ray tasks that encode images: the backbone's own features, the same however often they stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.cluster import connect, disconnect
from prompt_tuning.image_files import open_image
from prompt_tuning.vlm import VLM, VLMSettings
from workers.feature_workers import encode_images


@pytest.fixture
def cluster() -> Iterator[None]:
    connect()
    yield
    disconnect()


@pytest.mark.usefixtures("cluster")
def test_images_have_the_backbones_features_also_after_a_stop(
    tmp_path: Path, embedded_vlm: VLM, embedded_settings: VLMSettings, lasting_cache: Path
) -> None:
    draw = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(61)]  # two parts, the last batch of one
    for file in files:
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    parts, told = tmp_path / "parts", []
    features = encode_images(files, embedded_settings, lasting_cache, parts, told.append)
    assert sum(told) == len(files)
    rows = [0, 3, 47, 48, 60]
    pixels = torch.stack([embedded_vlm.preprocess(open_image(files[row])) for row in rows])
    expected, some = embedded_vlm.encode_image(pixels), features.take(torch.tensor(rows))
    torch.testing.assert_close(some.pooled.float(), expected.pooled, atol=1e-3, rtol=0)
    torch.testing.assert_close(some.regions.float(), expected.regions, atol=1e-3, rtol=0)

    first, _ = sorted(parts.iterdir())
    shutil.rmtree(first)
    again = encode_images(files, embedded_settings, lasting_cache, parts, told.append)
    assert torch.equal(again.pooled, features.pooled)
    assert torch.equal(again.regions, features.regions)
