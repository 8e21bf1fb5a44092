"""Reads and writes formats of annotation tools with the tools' own packages.

    python tool_readers.py (read|write) TOOL FOLDER

Runs in the environment of requirements/readers.txt, without our code. `read` prints the labels of
each image as JSON, with scores where the format has them. `write` takes such JSON from the standard
input (scores do not matter), and writes the folder for images in `photos` beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
Labels = dict[str, dict[str, Any]]


def named(path: str) -> str:
    """An image's name below the folder `photos`."""
    return path.replace(os.sep, "/").rpartition("photos/")[2]


def read_datumaro(kind: str, folder: Path) -> Labels:
    import datumaro as dm

    data = dm.Dataset.import_from(str(folder), kind)
    labels = data.categories()[dm.AnnotationType.label]
    return {
        named(item.media.path): {
            labels[a.label].name: a.attributes.get("score") for a in item.annotations
        }
        for item in data
    }


def read_coco(folder: Path) -> Labels:
    from pycocotools.coco import COCO

    coco = COCO(folder / "annotations/labels_default.json")
    return {
        named(image["file_name"]): {
            coco.cats[a["category_id"]]["name"]: a["score"]
            for a in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        }
        for image in coco.loadImgs(coco.getImgIds())
    }


def read_label_studio(folder: Path) -> Labels:
    """Checks tasks and predictions against the labelling config, and reads the predictions."""
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    interface = LabelInterface((folder / "tasks.config.xml").read_text("utf-8"))
    interface.validate()
    found = {}
    for task in json.loads((folder / "tasks.json").read_bytes()):
        assert interface.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction)
        PredictionValue(**prediction)
        choices = [name for r in prediction["result"] for name in r["value"]["choices"]]
        assert set(choices) == set(task["data"]["scores"])
        found[named(task["data"]["image"])] = task["data"]["scores"]
    return found


def read_fiftyone(folder: Path) -> Labels:
    """With FiftyOne's importer, which needs no database."""
    from fiftyone.utils.data.importers import FiftyOneImageClassificationDatasetImporter

    importer = FiftyOneImageClassificationDatasetImporter(str(folder), data_path="data.json")
    with importer:
        return {
            named(path): {c.label: c.confidence for c in label.classifications}
            for path, _, label in importer
        }


def read_fiftyone_yolo(folder: Path) -> Labels:
    from fiftyone.utils.yolo import YOLOv5DatasetImporter

    importer = YOLOv5DatasetImporter(str(folder), yaml_path="data.yaml", split="train")
    with importer:
        return {
            named(path): {d.label: None for d in label.detections} for path, _, label in importer
        }


READ = {
    "datumaro": lambda folder: read_datumaro("datumaro", folder),
    "cvat": lambda folder: read_datumaro("cvat", folder),
    "coco_labels": lambda folder: read_datumaro("coco_labels", folder),
    "yolo": lambda folder: read_datumaro("yolo", folder),
    "coco_json": read_coco,
    "label_studio": read_label_studio,
    "fiftyone": read_fiftyone,
    "fiftyone_yolo": read_fiftyone_yolo,
}


def write_datumaro(kind: str, folder: Path, labels: Labels) -> None:
    """Labels; for a kind that has none, boxes."""
    import datumaro as dm

    names = sorted({name for of_image in labels.values() for name in of_image})
    items = []
    for image, of_image in labels.items():
        index = [names.index(name) for name in of_image]
        shown = [dm.Bbox(1, 1, 5, 5, label=i) if kind == "yolo" else dm.Label(i) for i in index]
        media = dm.Image.from_file(path=str(folder.parent / "photos" / image))
        name = os.path.splitext(image)[0]
        subset = "train" if kind == "cvat" or len(items) % 2 else "val"
        items.append(dm.DatasetItem(id=name, subset=subset, media=media, annotations=shown))
    kind = {"yolo": "yolo_ultralytics"}.get(kind, kind)
    data = dm.Dataset.from_iterable(items, categories=names)
    data.export(str(folder), kind, save_media=True)


def write_label_studio(folder: Path, labels: Labels) -> None:
    """JSON-MIN, which Label Studio's own converter makes of annotated tasks."""
    from label_studio_sdk.converter import Converter

    names = sorted({name for of_image in labels.values() for name in of_image})
    choices = "".join(f'<Choice value="{name}"/>' for name in names)
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="what" toName="image" choice="multiple">{choices}</Choices></View>'
    )
    folder.mkdir()
    tasks = []
    for number, (image, of_image) in enumerate(labels.items(), 1):
        result = {
            "id": f"r{number}",
            "from_name": "what",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": list(of_image)},
        }
        annotation = {
            "id": number,
            "completed_by": {"id": 1, "email": "a@b.org"},
            "result": [result] if of_image else [],
            "was_cancelled": False,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
            "lead_time": 1.5,
        }
        data = {"image": f"/data/local-files/?d=photos/{image}"}
        tasks.append({"id": number, "data": data, "annotations": [annotation]})
    (folder / "raw").write_text(json.dumps(tasks), "utf-8")
    converter = Converter(config, str(folder))
    converter.convert_to_json_min(str(folder / "raw"), str(folder), is_dir=False)
    (folder / "raw").unlink()
    shutil.copytree(folder.parent / "photos", folder / "photos")


def write_fiftyone(folder: Path, labels: Labels) -> None:
    import fiftyone as fo
    from fiftyone.utils.data.exporters import FiftyOneImageClassificationDatasetExporter

    exporter = FiftyOneImageClassificationDatasetExporter(str(folder), export_media=True)
    with exporter:
        for image, of_image in labels.items():
            found = fo.Classifications(
                classifications=[fo.Classification(label=name) for name in of_image]
            )
            exporter.export_sample(str(folder.parent / "photos" / image), found)


WRITE = {
    "datumaro": lambda folder, labels: write_datumaro("datumaro", folder, labels),
    "cvat": lambda folder, labels: write_datumaro("cvat", folder, labels),
    "yolo": lambda folder, labels: write_datumaro("yolo", folder, labels),
    "label_studio": write_label_studio,
    "fiftyone": write_fiftyone,
}

if __name__ == "__main__":
    action, tool, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if action == "read":
        printed = json.dumps(READ[tool](folder))
        print(f"\n{printed}")  # tools print lines of their own
    else:
        WRITE[tool](folder, json.load(sys.stdin))
