"""COCO's JSON with categories of whole images: annotations without boxes.

`prompt_tuning/datasets/coco.py` reads it, as it reads other JSON in COCO's format.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.storage import replacing


@contextmanager
def write_coco_images(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row's image and its annotations, one per tag, with its score.

    Annotations have no `bbox`. They wait in a temporary file, because all images stand first.
    """
    index = {name: i for i, name in enumerate(labels, 1)}
    images = annotations = 0

    def write(row: Row) -> None:
        nonlocal images, annotations
        stream.write(",\n" if images else "\n")
        images += 1
        stream.write(json.dumps({"id": images, "file_name": row["file"]}))
        for tag in row["tags"]:
            waiting.write(",\n" if annotations else "\n")
            annotations += 1
            annotation = {
                "id": annotations,
                "image_id": images,
                "category_id": index[tag["name"]],
                "iscrowd": 0,
                "score": tag["score"],
            }
            waiting.write(json.dumps(annotation))

    info = {"description": "tags of whole images, without boxes", "made_with": made_with}
    categories = [{"id": i, "name": name} for name, i in index.items()]
    with (
        replacing(target) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=target.parent) as waiting,
    ):
        stream.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n')
        stream.write('"images": [')
        yield write
        stream.write('\n],\n"annotations": [')
        waiting.seek(0)
        shutil.copyfileobj(waiting, stream)
        stream.write("\n]}\n")
