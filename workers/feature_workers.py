"""Ray tasks that encode captions and images in parts; a part that is on disk is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch

from prompt_tuning.features import Features, concatenate, load_features, save_features
from prompt_tuning.image_files import open_image
from prompt_tuning.store import is_published, publishing
from prompt_tuning.vlm import VLM, VLMSettings, load_vlm

_CAPTIONS_A_PART = 512
_IMAGES_A_PART = 48
_IMAGES_A_BATCH = 16
_FEATURES = "features.safetensors"


def encode_captions(
    captions: Sequence[str],
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    on_items: Callable[[int], None],
    gpus: float = 0,
) -> Features:
    """Features of captions, in order, by tasks that take `gpus` each.

    `on_items` is told how many more are done.
    """
    return _encode(_caption_part, captions, _CAPTIONS_A_PART, vlm, cache, parts, on_items, gpus)


def encode_images(
    files: Sequence[Path],
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    on_items: Callable[[int], None],
    gpus: float = 0,
) -> Features:
    """Features of image files, in order, by tasks that take `gpus` each.

    `on_items` is told how many more are done.
    """
    return _encode(_image_part, files, _IMAGES_A_PART, vlm, cache, parts, on_items, gpus)


def _encode(
    task: Any,
    items: Sequence[Any],
    size: int,
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    on_items: Callable[[int], None],
    gpus: float,
) -> Features:
    task = task.options(num_gpus=gpus)
    chunks = {
        parts / f"{start:08d}": items[start : start + size] for start in range(0, len(items), size)
    }
    missing = {}
    for part, chunk in chunks.items():
        if is_published(part):
            on_items(len(chunk))
        else:
            missing[part] = chunk
    # The first task alone: what a backbone derives from its weights is then computed only once.
    for group in (list(missing)[:1], list(missing)[1:]):
        running = {task.remote(missing[part], vlm, cache, part): part for part in group}
        while running:
            (done, *_), _ = ray.wait(list(running))
            ray.get(done)
            on_items(len(missing[running.pop(done)]))
    return concatenate(load_features(part / _FEATURES) for part in chunks)


@ray.remote(num_cpus=1)
def _caption_part(captions: Sequence[str], vlm: VLMSettings, cache: Path, part: Path) -> None:
    with publishing(part) as staging:
        features = _loaded(vlm, cache, _device()).encode_captions(list(captions))
        save_features(staging / _FEATURES, features.to("cpu"))


@ray.remote(num_cpus=1)
def _image_part(files: Sequence[Path], vlm: VLMSettings, cache: Path, part: Path) -> None:
    model = _loaded(vlm, cache, _device())
    with publishing(part) as staging:
        batches = []
        for start in range(0, len(files), _IMAGES_A_BATCH):
            batch = files[start : start + _IMAGES_A_BATCH]
            pixels = [model.preprocess(open_image(file)) for file in batch]
            features = model.encode_image(torch.stack(pixels).to(model.device))
            batches.append(features.to("cpu"))
        save_features(staging / _FEATURES, concatenate(batches))


@lru_cache(maxsize=1)
def _loaded(vlm: VLMSettings, cache: Path, device: str) -> VLM:
    return load_vlm(vlm, device, cache)


def _device() -> str:
    """Where this task computes: on the GPU that Ray gave it, if it did."""
    return "cuda" if ray.get_gpu_ids() else "cpu"
