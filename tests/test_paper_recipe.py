"""The released recipe gives the numbers that were found equal to the released code's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_clip import load_tiny_clip, write_tiny_clip

from orchestrator.config.load import load_config
from prompt_tuning.captions import Caption
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.hierarchy import parse_groups
from prompt_tuning.tuning.caption_set import CaptionSet, caption_labels
from prompt_tuning.tuning.class_prompts import ClassPrompts
from prompt_tuning.tuning.trainer import TuningRun

NAMES = ("dog", "cat", "cow", "bus")
GROUPS = {"animals": {"pets": ["dog", "cat"], "farm": ["cow"]}, "things": {"road": ["bus"]}}
CAPTIONS = [
    ("A dog chews a bone.", (0,)),
    ("A cat sleeps near a dog.", (0, 1)),
    ("A cow looks at a bus.", (2, 3)),
    ("A bus stops.", (3,)),
    ("A cat and a cow drink milk.", (1, 2)),
]


def test_losses_of_the_released_recipe_stay_what_they_are(tmp_path: Path) -> None:
    """As of commit 65a5c94."""
    config = load_config(Path(__file__).parent.parent / "configs" / "paper.yaml", [], None, None)
    write_tiny_clip(tmp_path)
    vlm = load_tiny_clip(tmp_path)
    categories = CategoryList(categories=tuple(Category(name=name) for name in NAMES))
    hierarchy = parse_groups(GROUPS, categories, "test")
    captions = CaptionSet.of_all(
        vlm.encode_captions([text for text, _ in CAPTIONS]),
        caption_labels([Caption(*caption, "test") for caption in CAPTIONS], len(NAMES)),
    )
    prompts = ClassPrompts(
        vlm, categories, hierarchy, config.prompts, config.scoring, config.losses, seed=0
    )
    run = TuningRun(prompts, prompts, captions, captions, config.tuning, seed=0)
    history = [run.run_epoch() for _ in range(3)]
    assert [entry["loss"] for entry in history] == pytest.approx(
        [6.973437, 6.793163, 6.895392], abs=1e-4
    )
    assert [entry["held_out_loss"] for entry in history] == pytest.approx(
        [6.864276, 6.753206, 6.631731], abs=1e-4
    )
