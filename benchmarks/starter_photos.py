"""How good the starter's tags are on labelled photos, as it comes: nothing is chosen on them.

    python benchmarks/starter_photos.py \\
        coco2017:train2017_sample:PHOTOS/coco_sample coco2017:dev2017_new:PHOTOS/coco_more

Protocol, written before the first look at photos:

- Photos of all the named sets (DATASET:SPLIT:ROOT; no split: DATASET::ROOT) are pooled.
- A label counts if the data set has a class with its name or a synonym; the starter's other labels
  are ignored, whether right or wrong. Labels without a positive photo are left out of means.
- mAP of the fused scores, with a 95 % bootstrap interval, of the packaged artifact and of
  `zero_shot` ("a photo of a {name}."), both by the embedded model as it comes.
- Precision, recall and F1 of tags at the packaged thresholds, which held-out captions set.
- Of all labels, counted or not: tags a photo, photos without a tag, and the labels given most.
- Thresholds, prompts and labels stay as they are, whatever the figures say.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from prompt_tuning import Artifact, Tagger, load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.bootstrap import bootstrap_map
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.tagging.calibration import calibration_quality
from prompt_tuning.tagging.tag_stream import score_files
from prompt_tuning.tuning.prompts import anchor_features

REPLICATES = 1000
MOST = 12


def untuned(vlm: VLM, artifact: Artifact) -> Artifact:
    """The artifact with the class features of the prompt "a photo of a {name}."."""
    texts = F.normalize(anchor_features(vlm, artifact.categories), dim=-1)
    return replace(artifact, classes=ClassFeatures(texts, texts))


def raw_scores(vlm: VLM, artifact: Artifact, files: list[Path]) -> np.ndarray:
    """Fused scores `(photos, classes)`, before calibration."""
    cores = len(os.sched_getaffinity(0))
    scored = list(score_files(Tagger(artifact, vlm), files, cores))
    assert not [scores for scores in scored if isinstance(scores, str)]
    return np.stack([scores for scores in scored if not isinstance(scores, str)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", nargs="+", metavar="DATASET:SPLIT:ROOT")
    parser.add_argument("--artifact", default="starter")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()

    artifact = Artifact.load(options.artifact)
    files: list[Path] = []
    labels, ignored = [], []
    for named in options.photos:
        dataset, split, root = named.split(":", 2)
        fields = {"dataset": dataset, "root": root, **({"split": split} if split else {})}
        photos = read_photos(DatasetSettings.model_validate(fields), artifact.categories)
        files += photos.files
        labels.append(photos.labels)
        none = np.zeros_like(photos.labels)
        ignored.append(none if photos.ignored is None else photos.ignored)
    shown, uncounted = np.concatenate(labels), np.concatenate(ignored)
    names = np.array(artifact.categories.names)

    vlm = load_vlm(artifact.vlm_settings, cache=options.cache)
    raw = raw_scores(vlm, artifact, files)
    before = raw_scores(vlm, untuned(vlm, artifact), files)
    result: dict[str, object] = {
        "photos": len(raw),
        "labels": int((shown & ~uncounted).any(0).sum()),
        "positives_a_photo": round(float((shown & ~uncounted).sum(1).mean()), 2),
    }
    for method, scores in (("starter", raw), ("zero_shot", before)):
        interval = bootstrap_map(scores, shown, REPLICATES, 0, uncounted)
        result[method] = {
            "map": round(100 * mean_average_precision(scores, shown, uncounted), 1),
            "interval": [round(100 * interval.low, 1), round(100 * interval.high, 1)],
        }
    quality = calibration_quality(raw, shown, uncounted, artifact.calibration)
    result["at_thresholds"] = {
        average: {name: round(share, 1) for name, share in rates.items()}
        for average, rates in quality["at_thresholds"].items()
    }
    result["ece"] = round(quality["ece"], 1)
    tags = artifact.calibration.scores(raw) >= artifact.calibration.thresholds
    counted = ~uncounted.all(0)
    given = tags.mean(0)
    result["tags_a_photo"] = {
        "counted": round(float(tags[:, counted].sum(1).mean()), 2),
        "others": round(float(tags[:, ~counted].sum(1).mean()), 2),
    }
    result["photos_without_a_tag"] = round(100 * float((~tags.any(1)).mean()), 1)
    result["given_most_in_percent"] = {
        str(names[c]): round(100 * float(given[c]), 1) for c in np.argsort(-given)[:MOST]
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
