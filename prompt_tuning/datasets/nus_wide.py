"""NUS-WIDE with its 81 concepts in the official layout (Chua et al., CIVR 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prompt_tuning.categories import CategoryList, built_in
from prompt_tuning.datasets.labelled_images import LabelledImages, labels_over, read_lines

WHERE_TO_GET = (
    "NUS-WIDE is at https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/"
    "NUS-WIDE.html"
)

# The names in the label files, in the order of the built-in list.
CONCEPTS = tuple(
    """
    airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds
    computer coral cow dancing dog earthquake elk fire fish flags flowers food fox frost garden
    glacier grass harbor horses house lake leaf map military moon mountain nighttime ocean person
    plane plants police protest railroad rainbow reflection road rocks running sand sign sky snow
    soccer sports statue street sun sunset surf swimmers tattoo temple tiger tower town toy train
    tree valley vehicle water waterfall wedding whales window zebra
    """.split()
)


def read_nus_wide(categories: CategoryList, root: Path, split: str) -> LabelledImages:
    """Read a split of NUS-WIDE over a run's categories, labels `(images, categories)`.

    `root` has `ImageList/`, `Groundtruth/TrainTestLabels/` and the images in `Flickr/`. `split`:
    test or train. Images without concepts are included.

    Raises:
        ValueError: with a file that is missing (and where to get the data set) or does not match
            the image list, or with the concepts, if none of them is in the category list.
    """
    split = split.capitalize()
    listed = root / "ImageList" / f"{split}Imagelist.txt"
    images = read_lines(listed, WHERE_TO_GET)
    labels = np.zeros((len(images), len(CONCEPTS)), dtype=bool)
    for c, concept in enumerate(CONCEPTS):
        file = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{split}.txt"
        values = read_lines(file, WHERE_TO_GET)
        if len(values) != len(images) or not set(values) <= {"0", "1"}:
            raise ValueError(f"{file}: must have a 0 or a 1 for each image of {listed.name}")
        labels[:, c] = np.array(values) == "1"
    files = tuple(root / "Flickr" / image.replace("\\", "/") for image in images)
    classes = [
        (official, *category.names)
        for official, category in zip(CONCEPTS, built_in("nus").categories, strict=True)
    ]
    return labels_over(categories, files, classes, labels)
