"""Labelled data sets, read in their official layouts, over the categories of a run."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import lemminflect
import numpy as np
import pytest
from PIL import Image

from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.errors import InputError
from orchestrator.plan.run import ImagesPlan, make_plan
from orchestrator.stages.images import UNREADABLE, read_images, write_photos
from prompt_tuning.categories import Category, CategoryList, built_in
from prompt_tuning.datasets import nus_wide, voc
from prompt_tuning.datasets.labelled_images import LabelledImages, readable
from prompt_tuning.datasets.registry import DatasetSettings, read_photos
from prompt_tuning.knowledge.noun_matching import NounMatcher
from workers.stage import run_stage

PAGES = {
    "voc2007": "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    "voc2012": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    "coco2014": "https://cocodataset.org/#download",
    "coco2017": "https://cocodataset.org/#download",
    "nus_wide": "https://lms.comp.nus.edu.sg/",
    "coco_json": "annotations.json",
    "voc_xml": "Annotations/",
    "xmp": "IMG_1.jpg.xmp",
    "folder": "labels.csv",
}


def listed(*categories: str | Category) -> CategoryList:
    return CategoryList(
        categories=tuple(Category(name=c) if isinstance(c, str) else c for c in categories)
    )


def read(dataset: str, root: Path, categories: CategoryList, **options: Any) -> LabelledImages:
    settings = DatasetSettings.model_validate(
        {"dataset": dataset, "root": str(root), **options}, strict=True
    )
    return read_photos(settings, categories)


def shown(photos: LabelledImages, categories: CategoryList) -> dict[str, set[str]]:
    """What each image shows, by its file's name; `?name` where that does not count."""
    ignored = np.zeros_like(photos.labels) if photos.ignored is None else photos.ignored
    assert not (photos.labels & ignored).any()
    return {
        file.name: {name for name, true in zip(categories.names, labels, strict=True) if true}
        | {
            f"?{name}"
            for name, not_counted in zip(categories.names, out, strict=True)
            if not_counted
        }
        for file, labels, out in zip(photos.files, photos.labels, ignored, strict=True)
    }


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def write_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((24, 16), 50).convert("RGB").save(file, "JPEG")


def write_voc(root: Path, year: str, split: str, values: dict[str, dict[str, int]]) -> None:
    """`values`: 1, -1 or 0 by image and class; -1 where nothing is said."""
    base = root / "VOCdevkit" / f"VOC{year}"
    write_text(base / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{i}\n" for i in values))
    for name in voc.CLASSES:
        lines = [f"{image} {of_image.get(name, -1):2}\n" for image, of_image in values.items()]
        write_text(base / "ImageSets" / "Main" / f"{name}_{split}.txt", "".join(lines))
    for image in values:
        write_image(base / "JPEGImages" / f"{image}.jpg")


def coco_json(
    images: dict[str, list[tuple[str, int]]], categories: tuple[str, ...]
) -> dict[str, Any]:
    """`images`: the annotations of each image, as category and `iscrowd`."""
    ids = {name: 7 * i + 1 for i, name in enumerate(categories)}
    annotations = [
        {"image_id": 100 + row, "category_id": ids[name], "iscrowd": crowd, "bbox": [0, 0, 1, 1]}
        for row, of_image in enumerate(images.values())
        for name, crowd in of_image
    ]
    return {
        "images": [{"id": 100 + row, "file_name": name} for row, name in enumerate(images)],
        "annotations": annotations[::-1],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }


COCO_CATEGORIES = built_in("coco").names
COCO_IMAGES = {
    "a.jpg": [("tv", 0), ("person", 1), ("tv", 0)],
    "b.jpg": [("person", 0)],
    "c.jpg": [],
}


def write_coco(root: Path, folder: str) -> None:
    described = json.dumps(coco_json(COCO_IMAGES, COCO_CATEGORIES))
    write_text(root / "annotations" / f"instances_{folder}.json", described)
    for name in COCO_IMAGES:
        write_image(root / folder / name)


def write_nus_wide(root: Path, split: str, images: dict[str, set[str]]) -> None:
    write_text(root / "ImageList" / f"{split}Imagelist.txt", "".join(f"{i}\r\n" for i in images))
    for concept in nus_wide.CONCEPTS:
        values = "".join(f"{int(concept in of_image)}\n" for of_image in images.values())
        labels = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{split}.txt"
        write_text(labels, values)
    for image in images:
        write_image(root / "Flickr" / image.replace("\\", "/"))


VOC_VALUES = {
    "000001": {"dog": 1, "tvmonitor": 1},
    "000002": {"aeroplane": 1, "dog": 0},
    "000003": {},
}


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_voc_is_found_from_three_folders_and_under_our_names(tmp_path: Path, root: str) -> None:
    write_voc(tmp_path, "2007", "test", VOC_VALUES)
    photos = read("voc2007", tmp_path / root, built_in("voc"))
    assert shown(photos, built_in("voc")) == {
        "000001.jpg": {"dog", "TV monitor"},
        "000002.jpg": {"airplane", "?dog"},
        "000003.jpg": set(),
    }
    assert all(file.is_file() for file in photos.files)


@pytest.mark.parametrize(
    ("difficult", "second"),
    [
        ("ignore", {"airplane", "?dog"}),
        ("negative", {"airplane"}),
        ("positive", {"airplane", "dog"}),
    ],
)
def test_voc_difficult_objects(tmp_path: Path, difficult: str, second: set[str]) -> None:
    write_voc(tmp_path, "2012", "val", VOC_VALUES)
    write_voc(tmp_path, "2012", "train", {"000009": {"cat": 1}})
    photos = read("voc2012", tmp_path, built_in("voc"), difficult=difficult)
    assert shown(photos, built_in("voc"))["000002.jpg"] == second
    other = read("voc2012", tmp_path, built_in("voc"), difficult=difficult, split="train")
    assert shown(other, built_in("voc")) == {"000009.jpg": {"cat"}}


def test_classes_of_a_data_set_go_to_categories_with_a_name_in_common(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", "test", VOC_VALUES)
    # tvmonitor has the synonym television; a pet is a dog or a cat; nobody labelled penguins.
    categories = listed(
        "penguin",
        Category(name="telly", synonyms=("Television",)),
        Category(name="pet", synonyms=("cat", "dog")),
    )
    assert shown(read("voc2007", tmp_path, categories), categories) == {
        "000001.jpg": {"?penguin", "telly", "pet"},
        "000002.jpg": {"?penguin", "?pet"},
        "000003.jpg": {"?penguin"},
    }
    over_coco = shown(read("voc2007", tmp_path, built_in("coco")), built_in("coco"))
    assert "tv" in over_coco["000001.jpg"] and "airplane" in over_coco["000002.jpg"]
    assert "?zebra" in over_coco["000003.jpg"] and "?motorcycle" not in over_coco["000003.jpg"]


def test_a_list_without_any_class_of_the_data_set_is_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", "test", VOC_VALUES)
    with pytest.raises(
        ValueError, match=r"no class of the data set.*aeroplane, bicycle, .*tvmonit"
    ):
        read("voc2007", tmp_path, listed("unicorn", "troll"))


@pytest.mark.parametrize(
    ("dataset", "options", "folder"),
    [
        ("coco2014", {}, "val2014"),
        ("coco2017", {}, "val2017"),
        ("coco2017", {"split": "train"}, "train2017"),
        ("coco2017", {"split": "train2017_sample"}, "train2017_sample"),
    ],
)
def test_coco_splits(tmp_path: Path, dataset: str, options: Any, folder: str) -> None:
    write_coco(tmp_path, folder)
    photos = read(dataset, tmp_path, built_in("coco"), **options)
    assert photos.files[0] == tmp_path / folder / "a.jpg"
    assert photos.ignored is None
    assert shown(photos, built_in("coco")) == {
        "a.jpg": {"tv", "person"},
        "b.jpg": {"person"},
        "c.jpg": set(),
    }


def test_coco_without_crowds_over_another_list(tmp_path: Path) -> None:
    write_coco(tmp_path, "val2017")
    photos = read("coco2017", tmp_path, built_in("voc"), crowd=False)
    assert photos.ignored is None  # COCO knows all classes of VOC
    assert shown(photos, built_in("voc")) == {
        "a.jpg": {"TV monitor"},
        "b.jpg": {"person"},
        "c.jpg": set(),
    }


def test_nus_wide(tmp_path: Path) -> None:
    images = {"actor\\0001_1.jpg": {"person", "nighttime"}, "zoo\\0002_2.jpg": {"whales", "zebra"}}
    write_nus_wide(tmp_path, "Test", images)
    write_nus_wide(tmp_path, "Train", {"zoo\\0003_3.jpg": {"elk"}})
    photos = read("nus_wide", tmp_path, built_in("nus"))
    assert photos.files == (
        tmp_path / "Flickr" / "actor" / "0001_1.jpg",
        tmp_path / "Flickr" / "zoo" / "0002_2.jpg",
    )
    assert photos.ignored is None
    assert shown(photos, built_in("nus")) == {
        "0001_1.jpg": {"person", "night"},
        "0002_2.jpg": {"whale", "zebra"},
    }
    train = read("nus_wide", tmp_path, built_in("nus"), split="train")
    assert shown(train, built_in("nus")) == {"0003_3.jpg": {"elk"}}


def test_the_81_concepts_stand_in_their_order_under_readable_names() -> None:
    categories = built_in("nus")
    assert len(nus_wide.CONCEPTS) == len(categories) == 81
    for concept, category in zip(nus_wide.CONCEPTS, categories.categories, strict=True):
        assert NounMatcher([category]).find(concept) == (0,)
    for name, category in zip(voc.CLASSES, built_in("voc").categories, strict=True):
        assert name in {word.replace(" ", "").lower() for word in category.names}


@pytest.mark.parametrize("name", ["coco", "nus", "scenes", "voc"])
def test_no_word_of_a_built_in_list_hides_another_in_the_plural(name: str) -> None:
    categories = built_in(name).categories
    matcher = NounMatcher(categories)
    for i, category in enumerate(categories):
        for word in (*category.names, *category.kinds):
            assert matcher.find(word) == (i,)
            plurals = lemminflect.getInflection(word.split(" ")[-1], "NNS", inflect_oov=False)
            for plural in () if " of " in word else plurals:
                assert matcher.find(" ".join([*word.split(" ")[:-1], plural])) == (i,)


def test_own_coco_json(tmp_path: Path) -> None:
    categories = listed(Category(name="couch", synonyms=("sofa",)), "hot dog", "lamp")
    images = {"in/a.jpg": [("sofa", 0)], "b.jpg": [("hot dog", 1)]}
    # A category without annotations does no harm.
    described = coco_json(images, ("sofa", "hot dog", "things"))
    for annotation in described["annotations"]:
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    write_text(tmp_path / "annotations.json", json.dumps(described))
    for name in images:
        write_image(tmp_path / name)
    photos = read("coco_json", tmp_path, categories)
    assert photos.files == (tmp_path / "in/a.jpg", tmp_path / "b.jpg")
    assert shown(photos, categories) == {"a.jpg": {"couch", "?lamp"}, "b.jpg": {"hot dog", "?lamp"}}
    without = read("coco_json", tmp_path, categories, crowd=False)
    assert shown(without, categories)["b.jpg"] == {"?lamp"}


def test_classes_outside_the_list_are_left_out_and_named(tmp_path: Path) -> None:
    categories = listed(Category(name="couch", synonyms=("sofa",)), "dog")
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    images = {"a.jpg": [("Sofa", 0), ("elk", 0), ("cow", 0)], "b.jpg": [("elk", 0), ("DOG ", 0)]}
    described = coco_json(images, ("Sofa", "cow", "elk", "moose", "DOG "))
    write_text(tmp_path / "annotations.json", json.dumps(described))
    photos = read("coco_json", tmp_path, categories)
    assert shown(photos, categories) == {"a.jpg": {"couch"}, "b.jpg": {"dog"}}
    assert photos.other_classes == ("cow", "elk")  # nothing shows a moose
    with pytest.raises(ValueError, match="there are: Sofa, cow, elk, moose, DOG"):
        read("coco_json", tmp_path, listed("unicorn", "troll"))


def test_a_table_names_what_is_no_label_with_its_row(tmp_path: Path) -> None:
    categories = listed(Category(name="couch", synonyms=("sofa",)), "dog")
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "labels.csv", "a.jpg,sofa;elk\na.jpg,dog;cow\n\na.jpg,dog\u2060\n")
    with pytest.raises(ValueError) as raised:
        read("folder", tmp_path, categories)
    assert str(raised.value) == (
        f"{tmp_path}/labels.csv: labels must be names or synonyms of categories "
        r"(got 'cow' in row 2, 'dog\u2060' in row 4, 'elk' in row 1)"
    )


CATEGORIES = listed(Category(name="couch", synonyms=("sofa",)), "dog", "traffic light")
AS_PEOPLE_WRITE_IT = {
    "a row for each label": "a.jpg,dog\nin/b.jpg,sofa\na.jpg,couch\nc ä.jpg,\n",
    "the same label twice": "a.jpg,dog;sofa\na.jpg,dog\nin/b.jpg,sofa\nc ä.jpg,\nc ä.jpg,\n",
    "two spellings": "./a.jpg,dog\nin\\b.jpg,sofa\nin/../a.jpg,sofa\nc a\u0308.jpg,\n",
    "header of a tool": "image_name,Class Name,Tags\na.jpg,dog,sofa\nin/b.jpg,sofa,\nc ä.jpg,,\n",
    "a header": "Filename,Labels\na.jpg,dog;sofa\nin/b.jpg,sofa\nc ä.jpg,\n",
    "blank rows": "\n\na.jpg,dog;sofa\n\n,\nin/b.jpg,sofa\nc ä.jpg,\n\n \n,,\n",
    "blanks": " a.jpg , dog ; sofa ;\nin/b.jpg ,\tsofa\nc ä.jpg, \n",
    "case and hyphens": "a.jpg,DOG;Sofa\nin/b.jpg,COUCH\nc ä.jpg,\n",
    "commas in quotes": 'a.jpg,"dog, sofa"\n"in/b.jpg","sofa"\nc ä.jpg,""\n',
    "a column for each": "a.jpg,dog,sofa\nin/b.jpg,sofa,\nc ä.jpg,,\n",
    "a spreadsheet's": "image;label\r\na.jpg;dog, sofa\r\nin/b.jpg;sofa\r\nc ä.jpg;\r\n",
    "semicolons only": "a.jpg;dog;sofa\nin/b.jpg;sofa;\nc ä.jpg;;\n",
    "many labels": "a.jpg," + "dog;sofa;" * 99 + "\nin/b.jpg,sofa\nc ä.jpg,\n",
    "tabs": "a.jpg\tdog|sofa\nin/b.jpg\tsofa\nc ä.jpg\t\n",
    "one or none": "File,Dog,couch,\na.jpg,1,1,\nin/b.jpg,0,1,\nc ä.jpg,0,0,\n",
    "true or false": "file;dog;sofa\na.jpg;True;1.0\nin/b.jpg;False;1\nc ä.jpg;False;0\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("written", AS_PEOPLE_WRITE_IT)
def test_tables_as_people_have_them(tmp_path: Path, written: str, encoding: str) -> None:
    for name in ("a.jpg", "in/b.jpg", "c ä.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "labels.csv").write_bytes(AS_PEOPLE_WRITE_IT[written].encode(encoding))
    photos = read("folder", tmp_path, CATEGORIES)
    assert [file.name for file in photos.files] == ["a.jpg", "b.jpg", "c ä.jpg"]
    assert shown(photos, CATEGORIES) == {
        "a.jpg": {"couch", "dog"},
        "b.jpg": {"couch"},
        "c ä.jpg": set(),
    }


def test_the_exact_name_of_a_file_wins(tmp_path: Path) -> None:
    for name in ("a.jpg", " a.jpg", "in/a.jpg", "in\\a.jpg"):
        write_image(tmp_path / name)
    write_text(tmp_path / "labels.csv", "a.jpg,dog\n a.jpg,sofa\nin\\a.jpg,dog\n./in/a.jpg,\n")
    photos = read("folder", tmp_path, CATEGORIES)
    assert [str(file.relative_to(tmp_path)) for file in photos.files] == [
        "a.jpg",
        " a.jpg",
        "in\\a.jpg",
        "in/a.jpg",
    ]


def test_a_label_with_separators_in_its_name_is_one(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / " b, c;d.jpg")
    categories = listed("tench|a fish", "dog|cat both", "dog")
    write_text(
        tmp_path / "labels.csv",
        'a.jpg,"tench|a fish;dog"\n" b, c;d.jpg","dog|cat both"\n',
    )
    assert shown(read("folder", tmp_path, categories), categories) == {
        "a.jpg": {"tench|a fish", "dog"},
        " b, c;d.jpg": {"dog|cat both"},
    }


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("a.jpg,dog\nb.jpg,\n./a.jpg,\n", "rows 1 and 3 contradict each other about .*a.jpg"),
        ("a.jpg,\n\na.jpg,dog\n", "rows 1 and 3 contradict each other"),
        ("f,dog\na.jpg,1\nb.jpg,1\na.jpg,0\n", "rows 2 and 4 contradict each other"),
        ("a.jpg,dog\nz .jpg,dog\n", r"row 2: 'z .jpg' must be a file in /"),
        ("a.jpg,dog\n" + 99 * "long " + ",dog\n", r"row 2: 'long .*' must be a file in /"),
        ("a.jpg,dog\nb.jpg\n", r"row 2: must be path,label;label \(got 'b.jpg'\)"),
        ("file,dog,elk\na.jpg,1,0\n", "(got 'elk' in row 1)"),
        ("file,dog,couch\na.jpg,1,2\n", r"row 2, 'couch': must be 1 or 0, .* \(got '2'\)"),
        ("file,dog,couch\na.jpg,1\n", r"row 2: must have 3 columns, .* \(got 2\)"),
        ("file,labels\n", "must list at least one photo"),
        ("beach,\na.jpg,dog\n", "row 1: 'beach' must be a file in /"),
        ("beach,castle\na.jpg,dog\n", "row 1: 'beach' must be a file in /"),
        ("\n \n", "must list at least one photo"),
    ],
)
def test_rows_that_cannot_be_meant_are_named(tmp_path: Path, table: str, words: str) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    write_text(tmp_path / "labels.csv", table)
    with pytest.raises(ValueError, match=words) as raised:
        read("folder", tmp_path, CATEGORIES)
    assert str(raised.value).startswith(f"{tmp_path}/labels.csv: ")


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "labels.csv").write_bytes("a.jpg,café\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"labels.csv: not UTF-8 \(byte 9\); save it as"):
        read("folder", tmp_path, CATEGORIES)


def test_what_coco_json_lists_twice_is_one(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.jpg")
    write_image(tmp_path / "b.jpg")
    described = {
        "images": [
            {"id": 1, "file_name": "in\\a.jpg"},
            {"id": 1, "file_name": "in/a.jpg"},
            {"id": "x", "file_name": "b.jpg"},
            {"id": 9, "file_name": "./in/a.jpg"},
        ],
        "categories": [
            {"id": 3, "name": "dog"},
            {"id": 3, "name": "dog"},
            {"id": 4, "name": "sofa"},
            {"id": 5, "name": "dog"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 5},
            {"image_id": 9, "category_id": 4},
            {"image_id": "x", "category_id": 3},
        ],
    }
    write_text(tmp_path / "annotations.json", json.dumps(described))
    photos = read("coco_json", tmp_path, CATEGORIES)
    assert photos.files == (tmp_path / "in/a.jpg", tmp_path / "b.jpg")
    assert shown(photos, CATEGORIES) == {
        "a.jpg": {"dog", "couch", "?traffic light"},
        "b.jpg": {"dog", "?traffic light"},
    }


@pytest.mark.parametrize(
    ("field", "twice", "message"),
    [
        ("images", {"id": 100, "file_name": "z.jpg"}, r"image id 100 stands for .*a.jpg' and .*z"),
        ("categories", {"id": 1, "name": "elk"}, "category id 1 stands for 'dog' and 'elk'"),
    ],
)
def test_an_id_of_two_things_is_refused(
    tmp_path: Path, field: str, twice: Any, message: str
) -> None:
    described = coco_json({"a.jpg": [("dog", 0)]}, ("dog",))
    described[field].append(twice)
    write_text(tmp_path / "annotations.json", json.dumps(described))
    with pytest.raises(ValueError, match=message):
        read("coco_json", tmp_path, CATEGORIES)


def test_coco_json_without_annotations_says_where_they_may_be(tmp_path: Path) -> None:
    described = {**coco_json({"a.jpg": []}, ("dog",)), "annotations": []}
    write_text(tmp_path / "annotations.json", json.dumps(described))
    with pytest.raises(ValueError, match=r"annotations must not be empty: .* CVAT .* labels.csv"):
        read("coco_json", tmp_path, CATEGORIES)


def write_xml(
    file: Path, filename: str | None, objects: list[tuple[str, str | None]], folder: str = "x"
) -> None:
    """`objects`: name and what stands for difficult."""
    items = "".join(
        f"<object><name>{name}</name>"
        + (f"<difficult>{difficult}</difficult>" if difficult is not None else "")
        + "<part><name>head</name></part></object>"
        for name, difficult in objects
    )
    named = "" if filename is None else f"<filename>{filename}</filename>"
    write_text(file, f"<annotation><folder>{folder}</folder>{named}{items}</annotation>")


LAYOUTS = {
    "VOC": ("Annotations/a.xml", "a.jpg", "JPEGImages/a.jpg"),
    "labelImg": ("a.xml", "a.jpg", "a.jpg"),
    "a folder for images": ("labels/a.xml", "a.jpg", "images/a.jpg"),
    "XML in a folder of its own": ("xml/a.xml", "a.jpg", "a.jpg"),
    "images in one": ("a.xml", "a.jpg", "photos/a.jpg"),
    "splits": ("train/Annotations/a.xml", "a.jpg", "train/JPEGImages/a.jpg"),
    "folders inside": ("Annotations/in/a.xml", "in/a.jpg", "JPEGImages/in/a.jpg"),
    "a path of Windows": ("Annotations/a.xml", r"C:\shots\a.jpg", "JPEGImages/a.jpg"),
    "no suffix": ("Annotations/a.xml", "a", "JPEGImages/a.jpg"),
    "no filename": ("Annotations/a.xml", None, "JPEGImages/a.jpg"),
    "renamed": ("a.xml", "before.jpg", "a.jpg"),
    "another suffix": ("Annotations/a.xml", "a.png", "JPEGImages/a.jpg"),
    "a suffix in upper case": ("Annotations/a.xml", "a.JPG", "images/a.jpg"),
    "splits of both": ("Annotations/train/a.xml", "a.jpg", "images/train/a.jpg"),
    "a folder for each class": ("Annotations/n1/a.xml", "a", "Data/n1/a.jpg"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_voc_xml_finds_its_images(tmp_path: Path, layout: str) -> None:
    xml, filename, image = LAYOUTS[layout]
    write_xml(tmp_path / xml, filename, [("dog", "0")])
    write_image(tmp_path / image)
    write_text(tmp_path / ".idea" / "workspace.xml", "<project/>")
    photos = read("voc_xml", tmp_path, CATEGORIES)
    assert photos.files == (tmp_path / image,)


@pytest.mark.parametrize(
    ("folder", "meant"),
    [("x", "images"), ("Images", "images"), ("depth", "depth"), (r"C:\shots\depth", "depth")],
)
def test_the_image_is_evaluated_and_no_map_that_is_called_like_it(
    tmp_path: Path, folder: str, meant: str
) -> None:
    write_xml(tmp_path / "Annotations" / "1.xml", "1.jpg", [("dog", "0")], folder)
    for near in ("Masks", "depth", "images"):
        write_image(tmp_path / near / "1.jpg")
    assert read("voc_xml", tmp_path, CATEGORIES).files == (tmp_path / meant / "1.jpg",)


def test_two_images_of_one_name_are_refused_where_nothing_says_which(tmp_path: Path) -> None:
    write_xml(tmp_path / "Annotations" / "1.xml", "1.jpg", [("dog", "0")])
    for near in (".thumbnails", "depth", "photos"):
        write_image(tmp_path / near / "1.jpg")
    with pytest.raises(ValueError, match=r"1.xml: must have one image; .*depth/1.jpg and .*photos"):
        read("voc_xml", tmp_path, CATEGORIES)


def test_xml_names_no_image_outside_its_data_set(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(tmp_path / "a.jpg")
    write_image(root / "JPEGImages" / "b.jpg")
    for name in ("../../a.jpg", str(tmp_path / "a.jpg")):
        write_xml(root / "Annotations" / "1.xml", name, [("dog", "0")])
        with pytest.raises(ValueError, match="none of 1 images can be read"):
            read("voc_xml", root, CATEGORIES)
    write_xml(root / "Annotations" / "1.xml", "../JPEGImages/b.jpg", [("dog", "0")])
    assert read("voc_xml", root, CATEGORIES).files == (root / "JPEGImages" / "b.jpg",)


@pytest.mark.parametrize("folder", ["train", "train/Annotations"])
def test_xml_never_takes_the_image_of_another_split(tmp_path: Path, folder: str) -> None:
    write_xml(tmp_path / folder / "1.xml", "1.jpg", [("dog", "0")])
    write_image(tmp_path / "train" / "1.jpg")
    write_xml(tmp_path / folder.replace("train", "val") / "1.xml", "1.jpg", [("sofa", "0")])
    photos = read("voc_xml", tmp_path, CATEGORIES)
    assert photos.files[0] == tmp_path / "train" / "1.jpg" != photos.files[1]
    assert photos.labels.sum(1).tolist() == [1, 1]
    write_image(tmp_path / "images" / "2.jpg")
    for split in ("train", "val"):
        write_xml(tmp_path / folder.replace("train", split) / "2.xml", "2.jpg", [("dog", "0")])
    with pytest.raises(
        ValueError, match=r"val.*2.xml: must have an image of its own .*train.*2.xml"
    ):
        read("voc_xml", tmp_path, CATEGORIES)


@pytest.mark.parametrize(
    ("difficult", "second"),
    [
        ("ignore", {"?dog", "couch"}),
        ("negative", {"couch"}),
        ("positive", {"dog", "couch"}),
    ],
)
def test_voc_xml(tmp_path: Path, difficult: str, second: set[str]) -> None:
    folder = tmp_path / "Annotations"
    write_xml(
        folder / "1.xml", "1.jpg", [("Dog", "1"), ("dog", "Unspecified"), ("Traffic_Light", None)]
    )
    write_xml(folder / "2.xml", "2.jpg", [("dog", "1"), ("sofa", ""), ("helmet", "0")])
    write_xml(folder / "3.xml", "3.jpg", [])
    for number in "123":
        write_image(tmp_path / "JPEGImages" / f"{number}.jpg")
    photos = read("voc_xml", tmp_path, CATEGORIES, difficult=difficult)
    assert shown(photos, CATEGORIES) == {
        "1.jpg": {"dog", "traffic light"},
        "2.jpg": second,
        "3.jpg": set(),
    }
    assert photos.other_classes == ("helmet",)


def test_voc_xml_knows_the_names_of_the_devkit(tmp_path: Path) -> None:
    write_xml(tmp_path / "1.xml", "1.jpg", [(name, "0") for name in voc.CLASSES])
    write_image(tmp_path / "1.jpg")
    assert read("voc_xml", tmp_path, built_in("voc")).labels.all()


def test_voc_xml_is_named_where_voc_is_asked_for(tmp_path: Path) -> None:
    write_xml(tmp_path / "Annotations" / "1.xml", "1.jpg", [("dog", "0")])
    with pytest.raises(ValueError, match=r"ImageSets/Main is missing; .*; .* dataset: voc_xml$"):
        read("voc2012", tmp_path, CATEGORIES)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB.encode(), "must not have a DOCTYPE"),
        (BOMB.encode("utf-16"), "must not have a DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "must not have a DOCTYPE"),
        (b"<annotations/>", r"must be VOC XML, with <annotation> first \(got <annotations>\)"),
        (b"<annotation>", "no element found"),
        (b"", "no element found"),
        (b'<?xml version="1.0" encoding="x"?><annotation/>', "unknown encoding"),
        (b"<annotation><object/></annotation>", "each object must have a name"),
    ],
)
def test_xml_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "1.xml").write_bytes(content)
    with pytest.raises(ValueError, match=words) as raised:
        read("voc_xml", tmp_path, CATEGORIES)
    assert str(raised.value).startswith(f"{tmp_path}/1.xml: ")


WRITERS = {
    "voc2007": lambda root: write_voc(root, "2007", "test", VOC_VALUES),
    "coco2017": lambda root: write_coco(root, "val2017"),
    "nus_wide": lambda root: write_nus_wide(root, "Test", {"zoo\\1.jpg": {"dog"}}),
}


@pytest.mark.parametrize("dataset", PAGES)
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="is missing") as raised:
        read(dataset, tmp_path, listed("dog", "person"))
    assert str(tmp_path) in str(raised.value) and PAGES[dataset] in str(raised.value)
    with pytest.raises(ValueError, match=r"^root: is missing") as raised:
        DatasetSettings.model_validate({"dataset": dataset}).options()
    assert PAGES[dataset] in str(raised.value)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
        ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/tvmonitor_test.txt"),
        ("coco2017", "annotations/instances_val2017.json"),
        ("nus_wide", "ImageList/TestImagelist.txt"),
        ("nus_wide", "Groundtruth/TrainTestLabels/Labels_zebra_Test.txt"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_named(tmp_path: Path, dataset: str, file: str) -> None:
    WRITERS[dataset](tmp_path)
    write_text(tmp_path / file, "non\nsense\n")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/")) as raised:
        read(dataset, tmp_path, listed("dog", "person"))
    assert Path(file).name in str(raised.value)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match="is missing") as raised:
        read(dataset, tmp_path, listed("dog", "person"))
    assert str(tmp_path / file) in str(raised.value) and PAGES[dataset] in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, ""),
        ({"images": [{"id": 1, "file_name": None}]}, r"image 0: file_name must be text \(got None"),
        (
            {"annotations": [{"image_id": 5, "category_id": 1}]},
            "annotation 0: image_id 5 is not among images",
        ),
        (
            {"annotations": [{"image_id": 100, "category_id": 5}]},
            "annotation 0: category_id 5 is not among categories",
        ),
        ({"annotations": [{"image_id": 100}]}, "'category_id' is missing"),
        ({"annotations": ["dog"]}, ""),
        ({"categories": [{"id": 1}]}, "'name' is missing"),
    ],
    ids=str,
)
def test_json_in_another_format_is_refused_by_name(tmp_path: Path, change: Any, words: str) -> None:
    described = {**coco_json({"a.jpg": [("dog", 0)]}, ("dog",)), **change}
    write_text(tmp_path / "annotations.json", json.dumps(described))
    with pytest.raises(ValueError, match=rf"annotations.json: not in COCO's format.*{words}"):
        read("coco_json", tmp_path, listed("dog", "cat"))


@pytest.mark.parametrize("dataset", WRITERS)
def test_without_a_readable_image_there_is_no_data_set(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path)
    for image in tmp_path.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(ValueError, match=r"none of \d images can be read; .*\.jpg: ") as raised:
        read(dataset, tmp_path, listed("dog", "person"))
    assert PAGES[dataset] in str(raised.value)


def test_unreadable_images_are_left_out_with_their_labels(tmp_path: Path) -> None:
    names = ("truncated.jpg", "good.jpg", "text.jpg", "empty.png", "missing.jpg", "last.jpg")
    for name in names:
        write_image(tmp_path / name)
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:-100])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "missing.jpg").unlink()
    labels = np.arange(12).reshape(6, 2) % 5 == 0
    ignored = np.arange(12).reshape(6, 2) % 5 == 1
    files = tuple(tmp_path / name for name in names)
    kept, reasons = readable(LabelledImages(files, labels, ignored, ("elk",)))
    assert kept.other_classes == ("elk",)
    assert [file.name for file in kept.files] == ["good.jpg", "last.jpg"]
    assert (kept.labels == labels[[1, 5]]).all()
    assert kept.ignored is not None and (kept.ignored == ignored[[1, 5]]).all()
    assert [f.name for f in reasons] == ["truncated.jpg", "text.jpg", "empty.png", "missing.jpg"]
    assert all(file.name in reason for file, reason in reasons.items())
    with pytest.raises(ValueError, match=r"none of the 1 readable images shows any category"):
        readable(LabelledImages((tmp_path / "good.jpg",), labels[1:2]))


@pytest.mark.parametrize("with_ignored", [True, False])
def test_saved_labels_come_back(tmp_path: Path, with_ignored: bool) -> None:
    labels = np.eye(3, 4, dtype=bool)
    photos = LabelledImages(
        (tmp_path / "ä b.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"),
        labels,
        ~labels if with_ignored else None,
        ("elk", "ö") if with_ignored else (),
    )
    photos.save(tmp_path / "photos.npz")
    loaded = LabelledImages.load(tmp_path / "photos.npz")
    assert loaded.files == photos.files and (loaded.labels == labels).all()
    assert loaded.labels.dtype == bool and loaded.other_classes == photos.other_classes
    if with_ignored:
        assert loaded.ignored is not None and (loaded.ignored == ~labels).all()
    else:
        assert loaded.ignored is None


def test_digest_tells_names_contents_and_labels(tmp_path: Path) -> None:
    file, other = tmp_path / "a.jpg", tmp_path / os.fsdecode(b"\xff.jpg")
    write_image(file)
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would never end
    labels = np.array([[True, False, False]])
    digests = [
        LabelledImages((file,), labels).digest(),
        LabelledImages((file,), ~labels).digest(),
        LabelledImages((file,), labels, ~labels).digest(),
        LabelledImages((file,), labels, None, ("elk",)).digest(),
        LabelledImages((tmp_path / "b.jpg",), labels).digest(),
        LabelledImages((tmp_path / "pipe.jpg",), labels).digest(),
        LabelledImages((other,), labels).digest(),
    ]
    assert LabelledImages((file,), labels.copy()).digest() == digests[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the same size
    file.write_bytes(content)
    digests.append(LabelledImages((file,), labels).digest())
    assert len(set(digests)) == 8


def test_features_of_images_are_those_of_their_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    for name, shade in (("a.bmp", 0), ("b.bmp", 255)):
        photos.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(photos / name)
    write_text(photos / "labels.csv", "a.bmp,dog\nb.bmp,cat\n")
    before = planned(tmp_path, "{dataset: folder, root: photos}")
    again = planned(tmp_path, "{dataset: folder, root: photos}")
    assert (again.images, again.features) == (before.images, before.features)
    with monkeypatch.context() as patch:  # another version of Pillow, and so for pillow-heif
        patch.setattr("orchestrator.plan.run.readable_formats", lambda: {"PNG": "1"})
        other = planned(tmp_path, "{dataset: folder, root: photos}")
    assert other.images != before.images and other.features != before.features
    photos.rename(tmp_path / "moved")
    moved = planned(tmp_path, "{dataset: folder, root: moved}")
    assert moved.images != before.images and moved.features == before.features
    # Two files of one size change places.
    photos = tmp_path / "moved"
    (photos / "a.bmp").rename(photos / "c.bmp")
    (photos / "b.bmp").rename(photos / "a.bmp")
    (photos / "c.bmp").rename(photos / "b.bmp")
    swapped = planned(tmp_path, "{dataset: folder, root: moved}")
    assert swapped.images != moved.images and swapped.features != moved.features


def planned(folder: Path, evaluation: str, categories: str = "voc") -> ImagesPlan:
    config = folder / "c.yaml"
    config.write_text(f"name: a\ncategories: {categories}\nevaluation: {evaluation}\n")
    loaded = load_config(config, [], str(folder / "cache"), str(folder / "runs"))
    return make_plan(loaded, Resources((Node(2, 0),)), None).labelled


def test_the_stage_of_images_names_and_leaves_out_what_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_voc(tmp_path, "2007", "test", VOC_VALUES)
    broken = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    plan = planned(tmp_path, "{dataset: voc2007, root: .}")
    assert plan.images is not None
    with caplog.at_level(logging.WARNING):
        assert run_stage(plan.images, partial(write_photos, plan))
    assert "1 of 3 images cannot be read" in caplog.text and str(broken) in caplog.text
    assert shown(read_images(plan), plan.categories) == {
        "000002.jpg": {"airplane", "?dog"},
        "000003.jpg": set(),
    }
    reasons = json.loads((plan.images.folder / UNREADABLE).read_bytes())
    assert list(reasons) == [str(broken)]
    # The resolved config says what was decided, and reads back as the same plan.
    settings = plan.settings
    assert (settings.split, settings.difficult, settings.crowd) == ("test", "ignore", None)
    again = planned(tmp_path, f"{{dataset: voc2007, root: {settings.root}, difficult: ignore}}")
    assert again.images == plan.images
    for option in ("difficult: negative", "split: trainval"):
        write_voc(tmp_path, "2007", "trainval", VOC_VALUES)
        broken.write_bytes(b"another size")
        assert planned(tmp_path, f"{{dataset: voc2007, root: ., {option}}}").images != plan.images


def test_labels_of_no_readable_image_are_an_error_of_the_stage(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", "test", {"000001": {"dog": 1}, "000002": {}})
    broken = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    broken.write_bytes(b"")
    plan = planned(tmp_path, "{dataset: voc2007, root: .}")
    with pytest.raises(
        InputError, match=r"evaluation.root: none of the \d+ readable images shows any"
    ):
        write_photos(plan, tmp_path)


@pytest.mark.parametrize(
    ("dataset", "folder", "split", "images"),
    [
        ("voc2012", "voc2012_sample", "train_sample", 528),
        ("coco2017", "coco_sample", "train2017_sample", 470),
    ],
)
def test_real_photos(dataset: str, folder: str, split: str, images: int) -> None:
    samples = os.environ.get("DATAFREE_PHOTOS")
    if not samples or not (Path(samples) / folder).is_dir():
        pytest.skip(f"DATAFREE_PHOTOS names no folder with {folder}")
    for own in (built_in("voc"), built_in("coco")):
        photos = read(dataset, Path(samples) / folder, own, split=split)
        assert photos.labels.shape == (images, len(own))
        tv = "TV monitor" if "TV monitor" in own.names else "tv"
        assert photos.labels[:, own.index(tv)].sum() > 0
