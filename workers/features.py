"""Ray tasks that encode captions and images into shards; shards on disk are not encoded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import ray
import torch
from PIL.Image import Image
from torch import Tensor

from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.features import concatenate, link_shard, save_features
from prompt_tuning.images import open_image
from prompt_tuning.parquet_rows import column_values, count_rows
from prompt_tuning.storage import is_published, publishing
from prompt_tuning.tiles import view_boxes
from workers.failure import DescribedFailure
from workers.loaded_vlm import loaded_vlm
from workers.waiting import Waiting

_CAPTIONS_PER_SHARD = {"cpu": 512, "cuda": 8192}
_IMAGES_PER_SHARD = {"cpu": 48, "cuda": 1024}
# Tasks that wait for a CPU, beside those that run: each holds its list of items.
_TASKS_AHEAD = 64
_SHARD = "shard.safetensors"

# Starts the task that encodes these items into a folder.
_Start = Callable[[range, Path], ray.ObjectRef]


def encode_captions(
    captions: Path,
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    folder: Path,
    on_items: Callable[[int], None],
    gpus: float = 0,
) -> None:
    """Fill a folder with the features of a file's captions, in order, by tasks with `gpus` each.

    `captions`: a file that a `CaptionWriter` wrote, which the tasks read. `parts`: where finished
    shards wait for the others. `on_items`: called with the number of items of each shard.
    """
    task = _caption_shard.options(num_gpus=gpus)

    def start(rows: range, part: Path) -> ray.ObjectRef:
        return task.remote(captions, rows, vlm, cache, part)

    size = _CAPTIONS_PER_SHARD[_kind(gpus)]
    _encode(count_rows(captions), size, start, vlm, cache, parts, folder, on_items, gpus)


def encode_images(
    files: Sequence[Path],
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    folder: Path,
    on_items: Callable[[int], None],
    gpus: float = 0,
) -> None:
    """The same for image files."""
    task = _image_shard.options(num_gpus=gpus)
    readers = _readers(gpus)

    def start(rows: range, part: Path) -> ray.ObjectRef:
        # A list of paths takes a hundred times as long to send.
        names = [str(file) for file in files[rows.start : rows.stop]]
        return task.remote(readers, names, vlm, cache, part)

    size = max(1, _IMAGES_PER_SHARD[_kind(gpus)] // len(view_boxes(vlm.tiles)))
    _encode(len(files), size, start, vlm, cache, parts, folder, on_items, gpus)


def _encode(
    count: int,
    size: int,
    start: _Start,
    vlm: VLMSettings,
    cache: Path,
    parts: Path,
    folder: Path,
    on_items: Callable[[int], None],
    gpus: float,
) -> None:
    """Run the tasks of all missing shards, then put all shards into the folder."""
    shards = [range(first, min(first + size, count)) for first in range(0, count, size)]
    missing = []
    for rows in shards:
        if is_published(_part(parts, rows)):
            on_items(len(rows))
        else:
            missing.append(rows)
    waiting = Waiting("feature tasks", {"CPU": 1, "GPU": gpus})
    if missing:
        # One task first, so that what a backbone derives from its weights is computed only once.
        ray.get(waiting.first([_load.options(num_gpus=gpus).remote(vlm, cache)]))
    resource, share = ("GPU", gpus) if gpus else ("CPU", 1)
    places = int(ray.cluster_resources().get(resource, 0) / share) if missing else 0
    ahead = iter(missing)
    running: dict[ray.ObjectRef, range] = {}
    while True:
        for rows in islice(ahead, _TASKS_AHEAD + 2 * places - len(running)):
            running[start(rows, _part(parts, rows))] = rows
        if not running:
            break
        waiting.first(list(running))
        # All that are ready: to look for one among many for each of them takes too long.
        done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        ray.get(done)
        for task in done:
            on_items(len(running.pop(task)))
    folder.mkdir()
    for rows in shards:
        link_shard(_part(parts, rows) / _SHARD, folder, rows.start)


def _part(parts: Path, rows: range) -> Path:
    return parts / f"{rows.start:012d}"


def _kind(gpus: float) -> str:
    return "cuda" if gpus else "cpu"


def _readers(gpus: float) -> int:
    """The threads that read images for a task: the CPUs per GPU of a node, times its GPUs.

    The task reserves only one of these CPUs, because other tasks may hold some of them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [gpus * node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, int(min(shares))) if gpus and shares else 1


@ray.remote(num_cpus=1)
def _load(vlm: VLMSettings, cache: Path) -> None:
    loaded_vlm(vlm, cache)


@ray.remote(num_cpus=1)
def _caption_shard(captions: Path, rows: range, vlm: VLMSettings, cache: Path, part: Path) -> None:
    with publishing(part) as staging:
        features = loaded_vlm(vlm, cache).encode_captions(column_values(captions, "text", rows))
        save_features(staging / _SHARD, features.to("cpu"))


@ray.remote(num_cpus=1)
def _image_shard(
    readers: int, names: Sequence[str], vlm: VLMSettings, cache: Path, part: Path
) -> None:
    model = loaded_vlm(vlm, cache)
    with publishing(part) as staging:
        batches = []
        for pixels in _pixels([Path(name) for name in names], model, readers):
            batches.append(model.encode_image(pixels.to(model.device)).to("cpu"))
        save_features(staging / _SHARD, concatenate(batches))


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
