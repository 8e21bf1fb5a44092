"""Images a second from files to features through Ray, against a bare forward loop.

    python benchmarks/image_features.py [--rounds 3]

Ours is `encode_images` as runs use it: JPEGs of 500 × 375 on disk are read, decoded, resized and
encoded by Ray tasks that publish their parts, and its whole wall time counts; the parts are new in
each round. Bare is nothing but `encode_image` on the same images, decoded beforehand, in ready
batches of our size and memory format. It is run as a process with one thread on each core, as ours,
and as one process with a thread on each core; `ratio` is ours ÷ the faster of these. Both sides
have loaded their models and are warm before anything counts; they take turns, figures are medians.
The images are made here, from a seed. CPUs only. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VIEWS_PER_BATCH, VLMSettings
from prompt_tuning.images import open_image
from workers.features import encode_images

BATCH = VIEWS_PER_BATCH["cpu"]


def write_photo(file: Path, draw: np.random.Generator) -> None:
    """Smooth colours with noise: a JPEG of about 55 kB, as photos of this size have."""
    colours = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(colours).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + draw.normal(0, 8, (375, 500, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)


class BareLoop:
    """A process that holds its own model and ready batches."""

    def __init__(self, vlm: VLMSettings, cache: Path, files: list[Path]) -> None:
        self.model = load_vlm(vlm, cache=cache)
        pixels = torch.stack([self.model.preprocess(open_image(file)) for file in files])
        self.batches = pixels.contiguous(memory_format=torch.channels_last).split(BATCH)

    def encode(self, threads: int) -> float:
        """Images a second."""
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for batch in self.batches:
            self.model.encode_image(batch)
        return sum(map(len, self.batches)) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=480)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    vlm, cache = VLMSettings(), Path("cache").absolute()
    rates: dict[str, list[float]] = {"ours": [], "bare_processes": [], "bare_threads": []}
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{number}.jpg" for number in range(options.images)]
        draw = np.random.default_rng(0)
        for file in files:
            write_photo(file, draw)

        def ours(turn: int) -> float:
            start = time.perf_counter()
            encode_images(
                files, vlm, cache, folder / f"parts-{turn}", folder / f"{turn}", lambda _: None
            )
            return len(files) / (time.perf_counter() - start)

        actor: Any = ray.remote(BareLoop).options(num_cpus=0)
        bare = [actor.remote(vlm, cache, files[core::cores]) for core in range(cores)]
        for turn in range(options.rounds + 1):  # the first warms up
            of_turn = {
                "ours": ours(turn),
                "bare_processes": sum(ray.get([loop.encode.remote(1) for loop in bare])),
                "bare_threads": ray.get(bare[0].encode.remote(cores)),
            }
            print(turn, {side: round(rate, 2) for side, rate in of_turn.items()}, flush=True)
            if turn:
                for side, rate in of_turn.items():
                    rates[side].append(rate)
    ray.shutdown()
    medians = {side: statistics.median(of_side) for side, of_side in rates.items()}
    result = {
        "ratio": round(
            medians["ours"] / max(medians["bare_processes"], medians["bare_threads"]), 3
        ),
        **{f"{side}_images_s": round(rate, 2) for side, rate in medians.items()},
        "batch": BATCH,
        "images": options.images,
        "rounds": options.rounds,
        "model": vlm.model,
        "resolution": vlm.resolution,
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
