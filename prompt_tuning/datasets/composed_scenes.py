"""The labels of composed scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages


def read_scenes(folder: Path, categories: CategoryList) -> LabelledImages:
    """Scenes that `compose_scenes` wrote; labels that are no category of the list are ignored."""
    scenes = json.loads((folder / "labels.json").read_text("utf-8"))["images"]
    labels = np.zeros((len(scenes), len(categories)), dtype=bool)
    for row, scene in enumerate(scenes):
        found = map(categories.find, scene["labels"])
        labels[row, [c for c in found if c is not None]] = True
    return LabelledImages(tuple(folder / scene["file"] for scene in scenes), labels)
