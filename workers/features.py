"""Ray tasks that encode captions and images in parts; parts that are on disk are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import ray
import torch
from PIL.Image import Image
from torch import Tensor

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.features import FEATURES, Features, concatenate, load_features, save_features
from prompt_tuning.images import open_image
from prompt_tuning.storage import is_published, publishing
from prompt_tuning.tiles import view_boxes
from workers.failure import DescribedFailure
from workers.waiting import Waiting

_CAPTIONS_PER_PART = 512
_IMAGES_PER_PART = {"cpu": 48, "cuda": 1024}


def encode_in_tasks(
    items: Sequence[str] | Sequence[Path],
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    on_items: Callable[[int], None],
    gpus: float = 0,
) -> Features:
    """Features of captions (str) or image files (Path), in order, by tasks with `gpus` each.

    `on_items`: called with the number of items of each finished part.
    """
    task: Any
    if isinstance(items[0], str):
        task, size = _caption_part.options(num_gpus=gpus).remote, _CAPTIONS_PER_PART
    else:
        task = partial(_image_part.options(num_gpus=gpus).remote, _readers(gpus))
        views = len(view_boxes(vlm.tiles))
        size = max(1, _IMAGES_PER_PART["cuda" if gpus else "cpu"] // views)
    chunks = {
        parts / f"{start:08d}": items[start : start + size] for start in range(0, len(items), size)
    }
    missing = {}
    for part, chunk in chunks.items():
        if is_published(part):
            on_items(len(chunk))
        else:
            missing[part] = chunk
    waiting = Waiting("feature tasks", {"CPU": 1, "GPU": gpus})
    if missing:
        # One task first, so that what a backbone derives from its weights is computed only once.
        ray.get(waiting.first([_load.options(num_gpus=gpus).remote(vlm, cache)]))
    running = {task(chunk, vlm, cache, part): part for part, chunk in missing.items()}
    while running:
        done = waiting.first(list(running))
        ray.get(done)
        on_items(len(missing[running.pop(done)]))
    return concatenate(load_features(part / FEATURES) for part in chunks)


def _readers(gpus: float) -> int:
    """The threads that read images for a task: the CPUs per GPU of a node, times its GPUs.

    The task reserves only one of these CPUs, because other tasks may hold some of them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [gpus * node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, int(min(shares))) if gpus and shares else 1


@ray.remote(num_cpus=1)
def _load(vlm: VLMSettings, cache: Path) -> None:
    _loaded(vlm, cache, _device())


@ray.remote(num_cpus=1)
def _caption_part(captions: Sequence[str], vlm: VLMSettings, cache: Path, part: Path) -> None:
    with publishing(part) as staging:
        features = _loaded(vlm, cache, _device()).encode_captions(list(captions))
        save_features(staging / FEATURES, features.to("cpu"))


@ray.remote(num_cpus=1)
def _image_part(
    readers: int, files: Sequence[Path], vlm: VLMSettings, cache: Path, part: Path
) -> None:
    model = _loaded(vlm, cache, _device())
    with publishing(part) as staging:
        batches = []
        for pixels in _pixels(files, model, readers):
            batches.append(model.encode_image(pixels.to(model.device)).to("cpu"))
        save_features(staging / FEATURES, concatenate(batches))


def _pixels(files: Sequence[Path], model: VLM, readers: int) -> Iterator[Tensor]:
    """Batches of images as `VLM.encode_image` takes them; threads read one batch ahead."""
    size = model.images_per_batch
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(readers) as pool:

        def read(batch: Sequence[Path]) -> Iterator[Tensor]:
            return pool.map(lambda file: model.preprocess(_opened(file)), batch)

        coming = read(batches[0])
        for following in [*batches[1:], []]:
            current, coming = coming, read(following)
            yield torch.stack(list(current))


def _opened(file: Path) -> Image:
    """An image that was readable when it was listed. Raises DescribedFailure if it is not now."""
    try:
        return open_image(file)
    except ValueError as error:
        raise DescribedFailure(str(error)) from None


@lru_cache(maxsize=1)
def _loaded(vlm: VLMSettings, cache: Path, device: str) -> VLM:
    return load_vlm(vlm, device, cache)


def _device() -> str:
    return "cuda" if ray.get_gpu_ids() else "cpu"
