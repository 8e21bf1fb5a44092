"""Which labelled photos to read, from where, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets import coco, folder, nus_wide, voc, voc_xml
from prompt_tuning.datasets.labelled_images import LabelledImages, problem_of
from prompt_tuning.settings import Settings

# Where each data set of photos is to be had, and the options that go with it, with defaults.
WHERE_TO_GET = {
    "voc2007": voc.where_to_get("2007"),
    "voc2012": voc.where_to_get("2012"),
    "coco2014": coco.WHERE_TO_GET,
    "coco2017": coco.WHERE_TO_GET,
    "nus_wide": nus_wide.WHERE_TO_GET,
    "coco_json": f"it must be {coco.OWN_LAYOUT}",
    "voc_xml": f"it must be {voc_xml.LAYOUT}",
    "folder": f"it must be {folder.LAYOUT}",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "voc2007": {"split": "test", "difficult": "ignore"},
    "voc2012": {"split": "val", "difficult": "ignore"},
    "coco2014": {"split": "val", "crowd": True},
    "coco2017": {"split": "val", "crowd": True},
    "nus_wide": {"split": "test"},
    "coco_json": {"crowd": True},
    "voc_xml": {"difficult": "ignore"},
    "folder": {},
}


class DatasetSettings(Settings):
    """What the prompts are measured on: a benchmark in its official layout below `root`, photos of
    one's own (`coco_json`: annotations.json; `voc_xml`: VOC XML files; `folder`: labels.csv),
    composed `scenes`, or no image at all (`none`: held-out captions only).

    `split`: of a benchmark; by default the one that figures are published on. `difficult`: what
    VOC's classes count as where an image shows only objects marked so (default: ignore). `crowd`:
    whether COCO's crowd regions count (default: true).
    """

    dataset: Literal[
        "voc2007",
        "voc2012",
        "coco2014",
        "coco2017",
        "nus_wide",
        "coco_json",
        "voc_xml",
        "folder",
        "scenes",
        "none",
    ] = "none"
    root: str | None = None
    split: str | None = None
    difficult: voc.Difficult | None = None
    crowd: bool | None = None

    def options(self) -> dict[str, Any]:
        """The options that go with the data set, as given or by default.

        Raises:
            ValueError: naming the field, for one that does not go with it, or a missing root.
        """
        for field in ("root", "split", "difficult", "crowd"):
            fitting = [name for name, of in _OPTIONS.items() if field == "root" or field in of]
            if getattr(self, field) is not None and self.dataset not in fitting:
                raise ValueError(f"{field}: only goes with dataset: {', '.join(fitting)}")
        if self.dataset in WHERE_TO_GET and self.root is None:
            raise ValueError(f"root: is missing; {WHERE_TO_GET[self.dataset]}")
        defaults = _OPTIONS.get(self.dataset, {})
        given = {name: getattr(self, name) for name in defaults}
        return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def read_photos(settings: DatasetSettings, categories: CategoryList) -> LabelledImages:
    """The labelled photos that the settings name, over the categories of a run.

    Raises:
        ValueError: naming what is missing or wrong, and where the data set is to be had; also
            when no image can be read or none shows a category.
    """
    options = settings.options()
    assert settings.root is not None
    root = Path(settings.root)
    match settings.dataset:
        case "voc2007" | "voc2012":
            photos = voc.read_voc_over(
                categories, root, settings.dataset.removeprefix("voc"), **options
            )
        case "coco2014" | "coco2017":
            photos = coco.read_coco(
                categories, root, settings.dataset.removeprefix("coco"), **options
            )
        case "nus_wide":
            photos = nus_wide.read_nus_wide(categories, root, **options)
        case "coco_json":
            photos = coco.read_coco_json(categories, root, **options)
        case "voc_xml":
            photos = voc_xml.read_voc_xml(categories, root, **options)
        case "folder":
            photos = folder.read_folder(root, categories)
        case _:
            raise AssertionError(f"{settings.dataset} has no photos")
    if not photos.labels.any():
        raise ValueError(f"{root}: no photo shows any category, so there is nothing to measure")
    # The first that can be read ends this: all are looked at when the stage of images runs.
    if all(problem_of(file) for file in photos.files):
        raise ValueError(
            f"none of {len(photos.files)} images can be read; "
            f"{problem_of(photos.files[0])}; {WHERE_TO_GET[settings.dataset]}"
        )
    return photos
