"""The registry of data sets of photos, and the settings that choose one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets import coco, folder, nus_wide, voc, voc_xml, xmp
from prompt_tuning.datasets.labelled_images import LabelledImages, problem_of
from prompt_tuning.datasets.scenes import read_scenes
from prompt_tuning.label_formats import cvat, datumaro, fiftyone, label_studio, yolo
from prompt_tuning.settings import Settings

# Of the file that lists the photos of a stage.
PHOTOS = "photos.npz"


@dataclass(frozen=True)
class Dataset:
    """A data set of photos.

    `read`: takes the categories, the folder and the options by name. `where_to_get`: for messages
    about missing files. `options`: the fields of `DatasetSettings` that it takes, with defaults.
    """

    read: Callable[..., LabelledImages]
    where_to_get: str
    options: dict[str, Any] = field(default_factory=dict)


# Register new data sets here. The default `split` is the one that published results use.
DATASETS = {
    "voc2007": Dataset(
        partial(voc.read_voc, year="2007"),
        voc.where_to_get("2007"),
        {"split": "test", "difficult": "ignore"},
    ),
    "voc2012": Dataset(
        partial(voc.read_voc, year="2012"),
        voc.where_to_get("2012"),
        {"split": "val", "difficult": "ignore"},
    ),
    "coco2014": Dataset(
        partial(coco.read_coco, year="2014"), coco.WHERE_TO_GET, {"split": "val", "crowd": True}
    ),
    "coco2017": Dataset(
        partial(coco.read_coco, year="2017"), coco.WHERE_TO_GET, {"split": "val", "crowd": True}
    ),
    "nus_wide": Dataset(nus_wide.read_nus_wide, nus_wide.WHERE_TO_GET, {"split": "test"}),
    "coco_json": Dataset(coco.read_coco_json, f"it must be {coco.OWN_LAYOUT}", {"crowd": True}),
    "voc_xml": Dataset(
        voc_xml.read_voc_xml, f"it must be {voc_xml.LAYOUT}", {"difficult": "ignore"}
    ),
    "xmp": Dataset(xmp.read_xmp, f"it must be {xmp.LAYOUT}"),
    "label_studio": Dataset(label_studio.read_label_studio, f"it must be {label_studio.LAYOUT}"),
    "cvat": Dataset(cvat.read_cvat, f"it must be {cvat.LAYOUT}"),
    "datumaro": Dataset(datumaro.read_datumaro, f"it must be {datumaro.LAYOUT}"),
    "fiftyone": Dataset(fiftyone.read_fiftyone, f"it must be {fiftyone.LAYOUT}"),
    "yolo": Dataset(yolo.read_yolo, f"it must be {yolo.LAYOUT}"),
    "folder": Dataset(folder.read_folder, f"it must be {folder.LAYOUT}"),
}
if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = Literal[(*DATASETS, "scenes", "none")]


class DatasetSettings(Settings):
    """Which labelled images the prompts are evaluated on.

    `dataset`: a benchmark in its official layout below `root`; your own photos below `root`
    (`folder`: labels.csv or review.csv, `coco_json`: annotations.json, `voc_xml`: VOC XML files,
    `xmp`: XMP sidecars, and the exports of the annotation tools `label_studio`, `cvat`, `datumaro`,
    `fiftyone`, `yolo`); composed `scenes`; or `none`, which evaluates on held-out captions only.
    `split`: of a benchmark; the default is the split that published results use. `difficult`: how
    VOC counts a class where an image shows only objects marked as difficult (default: ignore).
    `crowd`: whether COCO's crowd regions count (default: true).
    """

    dataset: DatasetName = "none"
    root: str | None = None
    split: str | None = None
    difficult: voc.Difficult | None = None
    crowd: bool | None = None

    def options(self) -> dict[str, Any]:
        """The options of the data set, as given or by default.

        Raises:
            ValueError: beginning with the field, if the data set does not take an option that is
                given, or `root` is missing.
        """
        for name in ("root", "split", "difficult", "crowd"):
            takers = [n for n, known in DATASETS.items() if name == "root" or name in known.options]
            if getattr(self, name) is not None and self.dataset not in takers:
                raise ValueError(f"{name}: only goes with dataset: {', '.join(takers)}")
        if self.dataset not in DATASETS:
            return {}
        chosen = DATASETS[self.dataset]
        if self.root is None:
            raise ValueError(f"root: is missing; {chosen.where_to_get}")
        given = {name: getattr(self, name) for name in chosen.options}
        return chosen.options | {name: value for name, value in given.items() if value is not None}


def read_photos(settings: DatasetSettings, categories: CategoryList) -> LabelledImages:
    """Read the labelled photos that the settings name, over the categories of a run.

    Raises:
        ValueError: if a file is missing (with where to get the data set) or wrong, if none of the
            images can be read, or if none shows a category.
    """
    options = settings.options()
    assert settings.root is not None
    dataset = DATASETS[settings.dataset]
    photos = dataset.read(categories, Path(settings.root), **options)
    if not photos.labels.any():
        raise ValueError(f"{settings.root}: nothing to measure, as no photo shows any category")
    # One readable image is enough here: the image stage decodes all of them.
    if all(problem_of(file) for file in photos.files):
        raise ValueError(
            f"none of {len(photos.files)} images can be read; "
            f"{problem_of(photos.files[0])}; {dataset.where_to_get}"
        )
    return photos


def stored_images(dataset: str, folder: Path, categories: CategoryList) -> LabelledImages:
    """The images of a data set whose list, or for `scenes` whose images, are in this folder."""
    if dataset == "scenes":
        return read_scenes(folder, categories)
    return LabelledImages.load(folder / PHOTOS)
