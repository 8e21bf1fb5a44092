"""Each kind of backbone has a recipe of its own; what a person gives wins over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_artifact import NAMES, SENTENCES

from orchestrator.config.load import check_config, load_config
from orchestrator.errors import InputError
from prompt_tuning import tune
from prompt_tuning.backbones.base import VLM, VLMSettings
from prompt_tuning.backbones.clip import CLIP as CLIPModel
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.recipe import RECIPES, recipe_with, with_recipe
from prompt_tuning.tuning.trainer import TuningSettings

CONFIGS = Path(__file__).parent.parent / "configs"
CLIP = {"kind": "open_clip", "model": "RN50-quickgelu", "pretrained": "openai", "resolution": 224}
OWN = {"name": "own", "categories": ["dog", "cat"], "captions": {"templates": True}}


def field(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings.model_dump(exclude_none=True) if hasattr(settings, "model_dump") else settings


@pytest.mark.parametrize(("kind", "vlm"), [("embedded", {}), ("open_clip", CLIP)])
def test_a_config_without_settings_has_its_backbones_recipe(kind: str, vlm: dict[str, Any]) -> None:
    config = check_config({**OWN, "vlm": vlm}, "own.yaml")
    for name, value in RECIPES[kind].items():
        assert field(config, name) == field(recipe_with(kind, {}), name) == value, name


def test_what_is_given_wins_and_is_left_as_it_is() -> None:
    given = {
        **OWN,
        "prompts": {"local_branch": {"learn": "tokens"}},
        "tuning": {"noise": {"std": 0.2}, "lr": 0.5},
    }
    config = check_config(given, "own.yaml")
    assert config.prompts.local_branch.learn == "tokens"
    assert config.prompts.local_branch.anchor_weight == 0.5
    assert config.prompts.global_branch.learn == "residuals"
    assert (config.tuning.lr, config.tuning.noise.std) == (0.5, 0.2)
    assert config.tuning.noise.relative is None
    assert given["tuning"] == {"noise": {"std": 0.2}, "lr": 0.5}
    assert with_recipe("another", given) == given


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vlm": {"kind": "clip"}}, "vlm.kind: must be 'embedded' or 'open_clip'"),
        ({"vlm": {"kind": 3}}, "vlm.kind: must be"),
        ({"vlm": "clip"}, "vlm: must be a mapping of fields"),
        ({"prompts": 3}, "prompts: must be a mapping of fields"),
        ({"prompts": {"local_branch": None}}, "prompts.local_branch: must be a mapping of fields"),
    ],
)
def test_wrong_values_are_refused_as_without_a_recipe(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=r"^own\.yaml: ") as refusal:
        check_config({**OWN, **wrong}, "own.yaml")
    assert words in str(refusal.value)
    assert str(refusal.value).count("\n") == 0


def test_clips_recipe_is_the_released_one_but_for_the_batch_and_the_fusion() -> None:
    paper = load_config(CONFIGS / "paper.yaml", [], None, None)
    ours = check_config({**OWN, "vlm": CLIP}, "own.yaml")
    differing = {
        f"{section}.{name}"
        for section in ("prompts", "scoring", "losses", "tuning")
        for name, value in getattr(paper, section)
        if getattr(ours, section).model_dump()[name] != getattr(paper, section).model_dump()[name]
    }
    spelled_out = {"scoring.scale", "scoring.local_temperature", "scoring.global_weight"}
    assert differing - spelled_out == {"tuning.batch", "scoring.fusion"}
    assert paper.scoring.resolve(CLIPModel.geometry) == ours.scoring.resolve(CLIPModel.geometry)


def test_every_kind_of_backbone_has_a_recipe() -> None:
    assert set(RECIPES) == set(get_args(VLMSettings.model_fields["kind"].annotation))


def test_the_quickstart_is_the_embedded_models_recipe() -> None:
    quickstart = load_config(CONFIGS / "quickstart.yaml", [], None, None)
    recipe = recipe_with("embedded", {})
    assert quickstart.prompts == recipe.prompts
    assert quickstart.losses == recipe.losses
    assert quickstart.scoring == recipe.scoring
    shared = quickstart.tuning.model_dump().keys() & recipe.tuning.model_dump().keys()
    assert {name: getattr(quickstart.tuning, name) for name in shared} == {
        name: getattr(recipe.tuning, name) for name in shared
    }


def test_fields_that_are_given_in_python_win_and_the_others_are_the_recipes() -> None:
    recipe = recipe_with("open_clip", {"tuning": TuningSettings(epochs=3)})
    assert (recipe.tuning.epochs, recipe.tuning.lr) == (3, 0.002)
    assert recipe.tuning.optimizer == "sgd"
    branch = BranchSettings(learn="tokens")
    recipe = recipe_with("embedded", {"prompts": PromptSettings(local_branch=branch)})
    assert recipe.prompts.local_branch.learn == "tokens"
    assert recipe.prompts.local_branch.anchor_weight == 0.5
    assert recipe.prompts.global_branch.learn == "residuals"


def test_tuning_in_python_takes_the_recipe_too(embedded_vlm: VLM) -> None:
    artifact = tune(embedded_vlm, NAMES, SENTENCES, held_out=0.3)
    assert artifact.tokens.anchor_weights == {"global": 0.0, "local": 0.5}
    assert all("residual" in name for name in artifact.tokens.tensors), artifact.tokens.tensors
