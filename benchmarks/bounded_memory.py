"""Memory of the driver and of workers with up to 1 M captions and 200,000 images.

    python benchmarks/bounded_memory.py [--captions 1000000] [--images 200000] [--cache FOLDER]

Features are simulated, in the sizes of the embedded model: 384 numbers each, 1 to 4 regions of a
caption, 100 of an image. For a quarter, a half and all of the items, each step in a process of its
own, with everything else as in a run:

- `publish_captions`, `publish_images`: the driver's loop over feature tasks, and its folder of
  shards. Only the tasks are simulated: they write their shards, and encode nothing.
- `tuning`: a tuning worker reads the captions, tunes some steps of an epoch with 80 classes on
  captions from all over the set, and measures the held-out captions.
- `scoring`: the evaluation task reads the captions, averages them by class, calibrates, and scores
  all images with two methods.

Figures are peaks of anonymous memory (RssAnon, sampled every 20 ms): pages of mapped files are not
in it, as the system drops them when it needs room. All of it takes 18 GB of disk and some minutes;
with less disk, give fewer images. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
import torch.nn.functional as F

from orchestrator.cluster.connect import connect, disconnect
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import Caption, CaptionWriter
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures, MethodFeatures, untuned_baselines
from prompt_tuning.evaluation.compare import score_methods
from prompt_tuning.features import FEATURES, Features, StoredFeatures, save_features
from prompt_tuning.hierarchy import cluster_groups
from prompt_tuning.storage import publishing
from prompt_tuning.tagging.calibration import calibrate_on_captions
from prompt_tuning.tuning.caption_set import load_caption_sets
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.prompts import anchor_features
from prompt_tuning.tuning.recipe import recipe_with
from prompt_tuning.tuning.trainer import TuningRun
from workers import features

STEPS = ("publish_captions", "tuning", "publish_images", "scoring")
SHARES = (4, 2, 1)
DIM, REGIONS_OF_IMAGE, CLASSES = 384, 100, 80
STEPS_TUNED = 100
HELD_OUT = 0.1
VLM = VLMSettings(model="efficientnet-lite0+minilm", resolution=224)
CATEGORIES = CategoryList(
    categories=tuple(Category(name=f"thing {number}") for number in range(CLASSES))
)


def simulated(count: int, of_images: bool) -> Features:
    """The same for every shard of this size."""
    draw = torch.Generator().manual_seed(count)
    counts = torch.full((count,), REGIONS_OF_IMAGE)
    if not of_images:
        counts = torch.randint(1, 5, (count,), generator=draw)
    pooled, regions = (
        F.normalize(torch.randn(rows, DIM, generator=draw), dim=-1)
        for rows in (count, int(counts.sum()))
    )
    return Features(pooled, regions, counts)


@ray.remote(num_cpus=1)
def write_shard(count: int, of_images: bool, part: Path) -> None:
    with publishing(part) as staging:
        save_features(staging / features._SHARD, simulated(count, of_images))


def publish(count: int, of_images: bool, folder: Path, cache: Path) -> None:
    """What the stages of features do in the driver."""
    sizes = features._IMAGES_PER_SHARD if of_images else features._CAPTIONS_PER_SHARD

    def start(rows: range, part: Path) -> ray.ObjectRef:
        return write_shard.remote(len(rows), of_images, part)

    parts, done = folder / "parts", folder / ("images" if of_images else "captions")
    connect(dashboard=False)
    with publishing(done) as staging:
        into = staging / FEATURES
        features._encode(count, sizes["cpu"], start, VLM, cache, parts, into, lambda _: None, 0)
    shutil.rmtree(parts)
    disconnect()


def write_captions(count: int, file: Path) -> None:
    with CaptionWriter(file, CATEGORIES) as writer:
        for number in range(count):
            first = number % CLASSES
            labels = sorted({first, (first + number // CLASSES) % CLASSES})
            text = f"A sentence with number {number} about some things that are on an image."
            writer.write_caption(Caption(text, tuple(labels), "specific"))


def tune(count: int, folder: Path, cache: Path) -> None:
    """A part of an epoch as in a tuning worker, and what it measures at the end of one."""
    vlm, recipe = load_vlm(VLM, cache=cache), recipe_with("embedded", {})
    sets = load_caption_sets(
        folder / "captions.parquet", folder / "captions" / FEATURES, CATEGORIES, HELD_OUT
    )
    unit = F.normalize(anchor_features(vlm, CATEGORIES), dim=-1).numpy()
    groups = cluster_groups(unit, CATEGORIES, 5, 20)
    settings = (recipe.prompts, recipe.scoring, recipe.losses)
    prompts = ClassPrompts(vlm, CATEGORIES, groups, *settings, 0)
    run = TuningRun(prompts, prompts, *sets, recipe.tuning, 0)
    order = torch.randperm(len(run.train)).split(recipe.tuning.batch)
    for step, positions in enumerate(order[:STEPS_TUNED]):
        run._step(positions, 0, step)
    run._validate()


def score(count: int, folder: Path, cache: Path) -> None:
    """What the evaluation task does before there are figures."""
    vlm = load_vlm(VLM, cache=cache)
    train, held_out = load_caption_sets(
        folder / "captions.parquet", folder / "captions" / FEATURES, CATEGORIES, HELD_OUT
    )
    untuned = untuned_baselines(vlm, CATEGORIES, train)
    tuned = ClassFeatures(untuned["templates"].pooled, untuned["caption_average"].local)
    images = StoredFeatures(folder / "images" / FEATURES)
    assert len(images) == count
    methods = MethodFeatures({"zero_shot": untuned["zero_shot"]}, {0: tuned})
    score_methods(images, methods, vlm.geometry, "mean")
    calibrate_on_captions(tuned, held_out, vlm.geometry)


def anonymous() -> int:
    """Anonymous memory of this process, in bytes."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


@contextmanager
def sampled() -> Iterator[list[int]]:
    """The peak of anonymous memory in the block, in a list."""
    peak, over = [anonymous()], threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()


def measure(step: str, count: int, folder: Path, cache: Path) -> None:
    """Print the peak and the seconds of a step."""
    if step == "publish_captions":
        write_captions(count, folder / "captions.parquet")
    began = time.perf_counter()
    with sampled() as peak:
        if step.startswith("publish"):
            publish(count, step == "publish_images", folder, cache)
        else:
            {"tuning": tune, "scoring": score}[step](count, folder, cache)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak_mb": round(peak[0] / 1e6), "seconds": round(seconds, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--cache", type=Path, default=Path("cache").resolve())
    parser.add_argument("--folder", type=Path, help="for the simulated features")
    parser.add_argument("--measure", choices=STEPS, help="this step only, in this process")
    parser.add_argument("--count", type=int, help="items of this step")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.count, args.folder, args.cache)
        return
    disk = 2.1e-9 * DIM * ((1 + REGIONS_OF_IMAGE) * args.images + 3.5 * args.captions)
    free = shutil.disk_usage(args.folder or tempfile.gettempdir()).free / 1e9
    if free < 1.2 * disk:
        sys.exit(f"features take {disk:.0f} GB of disk, and {free:.0f} GB are free: --images")
    peaks: dict[str, dict[str, int]] = {step: {} for step in STEPS}
    seconds: dict[str, dict[str, float]] = {step: {} for step in STEPS}
    for share in SHARES:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for step in STEPS:
                of_images = step in ("publish_images", "scoring")
                count = (args.images if of_images else args.captions) // share
                given: list[Any] = ["--measure", step, "--count", count, "--folder", folder]
                command = [sys.executable, __file__, *given, "--cache", args.cache]
                done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
                measured = json.loads(done.stdout.splitlines()[-1])
                print(f"{step}, {count:,}: {measured}", flush=True)
                peaks[step][str(count)] = measured["peak_mb"]
                seconds[step][str(count)] = measured["seconds"]
    growth = {}
    for step, of_counts in peaks.items():
        first, *_, last = of_counts.values()
        growth[step] = round(100 * (last / first - 1), 1)
    result = {"peak_mb": peaks, "growth_percent": growth, "seconds": seconds}
    print(json.dumps({**result, "features_gb": round(disk, 1)}))


if __name__ == "__main__":
    main()
