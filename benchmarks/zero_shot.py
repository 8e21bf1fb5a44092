"""Zero-shot mAP of the embedded model on VOC photos, next to the figures in docs/embedded-model.md.

    python benchmarks/zero_shot.py FOLDER --split train_sample

The photos are only used to measure. The last line is one JSON object: mAP by model and branch, and
the largest difference from the documented figures, which are those of our sample of 528 photos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList, built_in_text
from prompt_tuning.datasets.voc import read_voc
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics import mean_average_precision
from prompt_tuning.features import concatenate
from prompt_tuning.tuning.prompts import anchor_features

DESCRIBED = {  # docs/embedded-model.md: global, local, fused
    ("efficientnet-lite0+minilm", 224): (71.7, 74.6, 74.0),
    ("efficientnet-lite0+minilm", 320): (73.9, 76.6, 76.8),
    ("efficientnet-lite2+minilm", 320): (74.9, 78.9, 78.2),
}
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder with VOCdevkit/")
    parser.add_argument("--year", default="2012")
    parser.add_argument("--split", default="train_sample")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()

    categories = CategoryList.model_validate_json(json.dumps(yaml.safe_load(built_in_text("voc"))))
    photos = read_voc(categories, options.root, options.year, options.split)
    measured = {}
    farthest = 0.0
    for (model, resolution), described in DESCRIBED.items():
        vlm = load_vlm(VLMSettings(model=model, resolution=resolution), cache=options.cache)
        features = concatenate(
            vlm.encode_image(
                torch.stack([vlm.preprocess(Image.open(f)) for f in photos.files[i : i + BATCH]])
            )
            for i in range(0, len(photos.files), BATCH)
        )
        texts = F.normalize(anchor_features(vlm, categories), dim=-1)
        scores = method_scores(features, ClassFeatures(texts, texts), vlm.geometry, "mean")
        maps = {b: 100 * mean_average_precision(scores[b], photos.labels) for b in SCORE_KINDS}
        measured[f"{model}@{resolution}"] = {b: round(value, 2) for b, value in maps.items()}
        distances = [abs(maps[b] - d) for b, d in zip(SCORE_KINDS, described, strict=True)]
        farthest = max(farthest, *distances)
        print(f"{model}@{resolution}: {measured[f'{model}@{resolution}']} described {described}")
    print(
        json.dumps(
            {
                "photos": len(photos.files),
                "map": measured,
                "farthest_from_described": round(farthest, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
