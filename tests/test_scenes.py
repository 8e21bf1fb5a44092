"""The built-in category lists and their groups, and the composed scenes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

from prompt_tuning.categories import BUILT_IN, Category, CategoryList, built_in_text
from prompt_tuning.datasets.scenes import (
    LABELS_PER_SCENE,
    SceneSettings,
    compose_scenes,
    plan_scenes,
    read_scenes,
)
from prompt_tuning.datasets.stamps import stamp_files

ROOT = Path(__file__).parent.parent
GROUPS = {
    "scenes": ROOT / "configs" / "quickstart-groups.yaml",
    "coco": ROOT / "prompt_tuning" / "data" / "coco_groups.yaml",
    "nus": ROOT / "prompt_tuning" / "data" / "nus_groups.yaml",
    "starter": ROOT / "prompt_tuning" / "data" / "starter_groups.yaml",
    "voc": ROOT / "prompt_tuning" / "data" / "voc_groups.yaml",
}
# categories, fine groups, coarse groups
SHAPES = {
    "scenes": (44, 14, 5),
    "coco": (80, 20, 9),
    "nus": (81, 20, 8),
    "starter": (163, 41, 9),
    "voc": (20, 10, 4),
}


def built_in(name: str) -> CategoryList:
    return CategoryList.model_validate_json(json.dumps(yaml.safe_load(built_in_text(name))))


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_word_stands_for_two_categories(name: str) -> None:
    words = [
        word.lower()
        for category in built_in(name).categories
        for word in (*category.names, *category.kinds)
    ]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_labels_of_scenes_are_found_in_any_spelling(tmp_path: Path) -> None:
    images = [
        {"file": "a.jpg", "labels": ["dog", "hot air balloon"]},
        {"file": "b.jpg", "labels": []},
    ]
    (tmp_path / "labels.json").write_text(json.dumps({"images": images}), "utf-8")
    hound = Category(name="hound", synonyms=("dog",))
    listed = CategoryList(
        categories=(Category(name="Hot-air balloons"), Category(name="cat"), hound)
    )
    assert read_scenes(tmp_path, listed).labels.tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize("name", BUILT_IN)
def test_groups_cover_every_category_once(name: str) -> None:
    coarse = yaml.safe_load(GROUPS[name].read_text("utf-8"))
    fine = [group for groups in coarse.values() for group in groups]
    members = [
        member for groups in coarse.values() for group in groups.values() for member in group
    ]
    assert sorted(members) == sorted(built_in(name).names)
    assert len(set(fine)) == len(fine)
    assert (len(members), len(fine), len(coarse)) == SHAPES[name]


def test_plan_is_balanced_and_has_1_to_4_different_labels() -> None:
    plan = plan_scenes(tuple(stamp_files()), SceneSettings())
    assert all(1 <= len(labels) <= 4 and len(set(labels)) == len(labels) for labels in plan)
    counts = Counter(label for labels in plan for label in labels)
    assert len(counts) == 44
    assert max(counts.values()) - min(counts.values()) <= 2
    shares = Counter(len(labels) for labels in plan)
    assert [shares[n] / len(plan) for n in (1, 2, 3, 4)] == pytest.approx(
        LABELS_PER_SCENE, abs=0.08
    )


def test_short_plan_is_a_prefix_and_the_seed_matters() -> None:
    names = tuple(stamp_files())
    long = plan_scenes(names, SceneSettings(images=100))
    assert plan_scenes(names, SceneSettings(images=10)) == long[:10]
    assert plan_scenes(names, SceneSettings(images=100, seed=1)) != long


def test_small_label_lists_are_refused_and_four_suffice() -> None:
    settings = SceneSettings(images=50)
    with pytest.raises(ValueError, match="at least 4"):
        plan_scenes(("a", "b", "c"), settings)
    assert all(len(set(labels)) == len(labels) for labels in plan_scenes("abcd", settings))


def test_composition_repeats_byte_for_byte_and_extends(stamps: Path, tmp_path: Path) -> None:
    for folder, images in (("one", 3), ("same", 3), ("longer", 5)):
        compose_scenes(stamps, SceneSettings(images=images), tmp_path / folder)
    for number in range(3):
        file = f"images/{number:05d}.jpg"
        wanted = (tmp_path / "one" / file).read_bytes()
        assert (tmp_path / "same" / file).read_bytes() == wanted
        assert (tmp_path / "longer" / file).read_bytes() == wanted


def test_labels_say_what_was_drawn_and_where(stamps: Path, tmp_path: Path) -> None:
    settings = SceneSettings(images=12, size=128)
    compose_scenes(stamps, settings, tmp_path)
    listing = json.loads((tmp_path / "labels.json").read_text("utf-8"))
    assert listing["categories"] == list(stamp_files())
    plan = plan_scenes(tuple(stamp_files()), settings)
    assert [tuple(image["labels"]) for image in listing["images"]] == plan
    for image in listing["images"]:
        with Image.open(tmp_path / image["file"]) as opened:
            assert (opened.size, opened.mode) == ((128, 128), "RGB")
        assert [thing["category"] for thing in image["objects"]] == image["labels"]
        for thing in image["objects"]:
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
