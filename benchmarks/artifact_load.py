"""Size of an artifact of 80 classes, and the time from a new process to its first tags.

    python benchmarks/artifact_load.py [--rounds 5]

The artifact is tuned here on six sentences for each of COCO's categories. A new process each round
measures `import_s` (the package), `artifact_s` (reading and checking the files), `model_s` (loading
the image–text model) and `first_tags_s` (one image). Figures are medians; the files are in the page
cache. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from image_features import write_photo

from prompt_tuning import load_vlm, tune
from prompt_tuning.categories import built_in
from prompt_tuning.tuning.trainer import TuningSettings

LOAD = """
import json, sys, time
from pathlib import Path
folder, cache, photo = map(Path, sys.argv[1:])
times = [time.perf_counter()]
from prompt_tuning import Artifact, Tagger, load_vlm
times.append(time.perf_counter())
artifact = Artifact.load(folder)
times.append(time.perf_counter())
vlm = load_vlm(artifact.vlm_settings, "cpu", cache)
tagger = Tagger(artifact, vlm)
times.append(time.perf_counter())
tagger.tag([photo])
times.append(time.perf_counter())
assert "ray" not in sys.modules and "vllm" not in sys.modules
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    categories = built_in("coco").categories
    sentences = [
        (f"A {look} {category.name} {place}.", [category.name])
        for category in categories
        for look in ("small", "old")
        for place in ("near a wall", "by the road", "at home")
    ]
    vlm = load_vlm(cache=options.cache)
    with tempfile.TemporaryDirectory() as name:
        folder, photo = Path(name, "artifact"), Path(name, "photo.jpg")
        tune(vlm, categories, sentences, tuning=TuningSettings(epochs=1)).save(folder)
        write_photo(photo, np.random.default_rng(0))
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        command = [sys.executable, "-c", LOAD, str(folder), str(options.cache), str(photo)]
        rounds = [
            json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            for _ in range(options.rounds + 1)
        ][1:]
    parts = ("import_s", "artifact_s", "model_s", "first_tags_s")
    result = {
        "classes": len(categories),
        "bytes": sum(sizes.values()),
        **{
            part: round(statistics.median(times), 3)
            for part, times in zip(parts, zip(*rounds, strict=True), strict=True)
        },
        "files": sizes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
