"""How much a few labelled photos, or photos without labels, improve scores and thresholds.

    python benchmarks/photo_calibration.py --dataset voc2012 --root … --split train_sample

Prompts are tuned here for a few epochs on sentences from patterns with the list's names and
synonyms (no language model is used). Photos are scored once. Then, for each number of photos and
each draw, `fit_labelled` and `fit_unlabelled` see the drawn photos, and the figures are measured on
the others. The last line is one JSON object: for each number of photos [ECE, micro F1, macro F1] at
thresholds, means over draws, before the fit, with labels, and without.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from prompt_tuning import Artifact, Tagger, load_vlm, tune
from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.tagging.calibration import Calibration, calibration_quality
from prompt_tuning.tagging.photo_calibration import fit_labelled, fit_unlabelled
from prompt_tuning.tagging.tag_stream import score_files
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.trainer import TuningSettings

PHOTOS = (20, 50, 100)
DRAWS = 10
LOOKS = ("small", "brown", "old", "bright", "wet", "large")
PLACES = ("on the grass", "near a wall", "in the sun", "by the road", "at home", "in the city")


def sentences(categories: CategoryList, draw: np.random.Generator) -> list[tuple[str, list[str]]]:
    """Sentences about one category, by all its names, and about two or three."""
    made = [
        (f"A {draw.choice(LOOKS)} {draw.choice(one.names)} {draw.choice(PLACES)}.", [one.name])
        for one in categories.categories
        for _ in range(16)
    ]
    for _ in range(14 * len(categories)):
        some = draw.choice(categories.names, int(draw.integers(2, 4)), replace=False).tolist()
        listed = " and ".join(f"a {name}" for name in some)
        made.append((f"A photo of {listed} {draw.choice(PLACES)}.", some))
    return made


def tuned(vlm: VLM, categories: CategoryList) -> Artifact:
    """The quickstart's settings with fewer epochs."""
    branch = BranchSettings(shared=2, coarse=1, fine=1, category=2)
    return tune(
        vlm,
        categories.categories,
        sentences(categories, np.random.default_rng(0)),
        prompts=PromptSettings(
            global_branch=branch,
            local_branch=branch.model_copy(update={"anchor_weight": 0.5}),
        ),
        losses=LossSettings(margin=0.25, local_margin=2),
        tuning=TuningSettings(
            optimizer="adam", lr=0.02, epochs=4, batch=256, milestones=(3,), captions_per_item=4
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--split")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    fields = {"dataset": options.dataset, "root": options.root, "split": options.split}
    categories = built_in("voc" if options.dataset.startswith("voc") else "coco")
    photos = read_photos(DatasetSettings.model_validate(fields), categories)
    vlm = load_vlm(cache=options.cache)
    artifact = tuned(vlm, categories)
    cores = len(os.sched_getaffinity(0))
    scored = list(score_files(Tagger(artifact, vlm), photos.files, cores))
    raw = np.stack([scores for scores in scored if not isinstance(scores, str)])
    assert len(raw) == len(photos.files)
    ignored = np.zeros_like(photos.labels) if photos.ignored is None else photos.ignored
    result: dict[str, object] = {"photos": len(raw), "classes": len(categories)}
    for number in PHOTOS:
        sides: dict[str, list[list[float]]] = {"before": [], "labelled": [], "unlabelled": []}
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(raw))
            some, rest = order[:number], order[number:]
            before = artifact.calibration
            fits: dict[str, Calibration] = {
                "before": before,
                "labelled": fit_labelled(before, raw[some], photos.labels[some], ignored[some]),
                "unlabelled": fit_unlabelled(before, raw[some]),
            }
            for side, fit in fits.items():
                quality = calibration_quality(raw[rest], photos.labels[rest], ignored[rest], fit)
                f1 = [quality["at_thresholds"][average]["f1"] for average in ("micro", "macro")]
                sides[side].append([quality["ece"], *f1])
        result[str(number)] = {
            side: [round(float(figure), 1) for figure in np.mean(draws, axis=0)]
            for side, draws in sides.items()
        }
        print(number, result[str(number)], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
