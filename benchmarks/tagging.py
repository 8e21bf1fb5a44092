"""Images per second of `datafree tag`, against a bare loop that decodes and encodes.

    python benchmarks/tagging.py [--rounds 3] [--links 20000]

Ours is the whole job with an output file: listing, part files, rows, the file at the end. Bare is a
loop over the same files in batches of our size: Pillow opens, the backbone preprocesses and
encodes, and the result is dropped. It runs with one thread and with one thread per core, and
`ratio` is ours ÷ the faster of the two: on a busy machine, threads that spin while they wait for
each other can make the second many times slower, which would flatter us. All use the same loaded
model, are warmed up first, and take turns; figures are medians. The images are JPEGs of 500 × 375,
generated from a seed. The artifact is tuned here on sentences.

`growth_mib`: growth of memory in one job over `--links` links to these files: the peak after the
first tenth of the time, minus the peak in it. `resident_mib`: the peak in each tenth. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from image_features import write_photo
from PIL import Image
from rich.console import Console

from orchestrator.tagging.job import tag_images
from prompt_tuning import Tagger, load_vlm, tune
from prompt_tuning.backbones.base import VLM
from prompt_tuning.tuning.trainer import TuningSettings

CATEGORIES = ["strawberry", "elephant", "bicycle", "penguin"]
SENTENCES = [
    (f"A {look} {name} {place}.", [name])
    for name in CATEGORIES
    for look in ("small", "old", "bright")
    for place in ("on the grass", "near a wall", "in the sun", "by the road")
]


def bare(vlm: VLM, files: list[Path], batch: int, threads: int) -> float:
    """Images per second."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for first in range(0, len(files), batch):
        images = [Image.open(file).convert("RGB") for file in files[first : first + batch]]
        pixels = torch.stack([vlm.preprocess(image) for image in images])
        vlm.encode_image(pixels.to(vlm.device, memory_format=torch.channels_last))
    return len(files) / (time.perf_counter() - start)


def ours(folder: Path, artifact: Path, cache: Path, console: Console, threads: int) -> float:
    """Images per second."""
    torch.set_num_threads(threads)
    out = folder.with_name("tags.jsonl")
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    assert tag_images(artifact, [str(folder)], cache=cache, console=console, out=out)
    return len(list(folder.iterdir())) / (time.perf_counter() - start)


def resident_mib() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def resident_through(job: Callable[[], object]) -> list[float]:
    """Peak of resident memory in each tenth of the job's time, in MiB."""
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    job()
    done.set()
    watcher.join()
    return [max(tenth) for tenth in np.array_split(seen, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--links", type=int, default=20_000)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    vlm = load_vlm(cache=options.cache)
    rates: dict[str, list[float]] = {"ours": [], "bare_one_thread": [], "bare_threads": []}
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere)
        artifact, photos, many = (Path(name, part) for part in ("artifact", "photos", "many"))
        tuned = tune(vlm, CATEGORIES, SENTENCES, tuning=TuningSettings(epochs=2, batch=32))
        tuned.save(artifact)
        tagger = Tagger(tuned, vlm)
        photos.mkdir()
        many.mkdir()
        draw = np.random.default_rng(0)
        for number in range(options.images):
            write_photo(photos / f"{number}.jpg", draw)
        files = sorted(photos.iterdir())
        for number in range(options.links):
            (many / f"{number:06d}.jpg").symlink_to(files[number % len(files)])
        with patch.object(Tagger, "load", return_value=tagger):  # both use the loaded one
            for turn in range(options.rounds + 1):  # the first warms up
                rates_now = {
                    "ours": ours(photos, artifact, options.cache, console, cores),
                    "bare_one_thread": bare(vlm, files, tagger.batch, 1),
                    "bare_threads": bare(vlm, files, tagger.batch, cores),
                }
                print(turn, {side: round(rate, 2) for side, rate in rates_now.items()}, flush=True)
                if turn:
                    for side, rate in rates_now.items():
                        rates[side].append(rate)
            resident = resident_through(lambda: ours(many, artifact, options.cache, console, cores))
    medians = {side: statistics.median(measured) for side, measured in rates.items()}
    fastest = max(medians["bare_one_thread"], medians["bare_threads"])
    result = {
        "ratio": round(medians["ours"] / fastest, 3),
        **{f"{side}_images_s": round(rate, 2) for side, rate in medians.items()},
        "growth_mib": round(max(resident[1:]) - resident[0], 1),
        "resident_mib": [round(peak) for peak in resident],
        "links": options.links,
        "images": options.images,
        "rounds": options.rounds,
        "batch": tagger.batch,
        "model": vlm.settings.model,
        "resolution": vlm.settings.resolution,
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
