"""Labelled images to evaluate on: where the files are and which categories each shows."""

from prompt_tuning.datasets.composed_scenes import read_scenes
from prompt_tuning.datasets.labelled_images import LabelledImages, readable
from prompt_tuning.datasets.registry import WHERE_TO_GET, DatasetSettings, read_photos
from prompt_tuning.datasets.voc import read_voc

__all__ = [
    "WHERE_TO_GET",
    "DatasetSettings",
    "LabelledImages",
    "read_photos",
    "read_scenes",
    "read_voc",
    "readable",
]
