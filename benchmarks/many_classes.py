"""Memory and time of a tuning step with 1,000 and 5,000 classes at depth 4.

    python benchmarks/many_classes.py [--steps 2]

RN50's text tower with random weights, float32, and the released recipe's tokens and losses; groups
in the proportion of COCO's (one fine group per 4 classes, one coarse group per 9), batch 512 with
captions of 12 to 30 tokens. Each size runs in a process of its own; the peak includes the loaded
model (`ru_maxrss`). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from random_clip import (
    BATCH,
    TUNING,
    class_prompts,
    even_groups,
    labels_of,
    named_classes,
    random_clip,
    random_features,
)

from prompt_tuning.tuning.caption_set import CaptionSet
from prompt_tuning.tuning.trainer import TuningRun

SIZES = (1000, 5000)


def measure(classes: int, steps: int) -> None:
    """Print peak and seconds of some steps with so many classes."""
    vlm, categories = random_clip(), named_classes(classes)
    prompts = class_prompts(vlm, categories, even_groups(classes, classes // 4, classes // 9))
    counts = torch.randint(12, 31, (BATCH,), generator=torch.Generator().manual_seed(4))
    features = random_features(counts, vlm.dim)
    train = CaptionSet.of_all(features, labels_of(BATCH, classes))
    run = TuningRun(prompts, prompts, train, train, TUNING, seed=0)
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        run._step(torch.arange(BATCH), 0, step)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": round(peak, 2), "step_s": round(statistics.median(seconds), 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--classes", type=int, help="measure this size only, in this process")
    args = parser.parse_args()
    if args.classes:
        measure(args.classes, args.steps)
        return
    peaks, times = {}, {}
    for size in SIZES:
        command = [sys.executable, __file__, "--classes", str(size), "--steps", str(args.steps)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured = json.loads(output.splitlines()[-1])
        print(f"{size} classes: {measured}", flush=True)
        peaks[str(size)], times[str(size)] = measured["peak_gib"], measured["step_s"]
    growth = {
        name: round((of_size[str(SIZES[1])] - of_size[str(SIZES[0])]) / (SIZES[1] - SIZES[0]), 5)
        for name, of_size in (("peak_gib_a_class", peaks), ("step_s_a_class", times))
    }
    print(json.dumps({"peak_gib": peaks, "step_s": times, "growth": growth}))


if __name__ == "__main__":
    main()
