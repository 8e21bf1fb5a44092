"""The method: prompts for new labels, tuned on text alone (arXiv 2403.01209). Plain PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.api import tune as tune
    from prompt_tuning.backbones import load_vlm as load_vlm
    from prompt_tuning.backbones.base import VLMSettings as VLMSettings
    from prompt_tuning.categories import Category as Category
    from prompt_tuning.tagging.artifact import Artifact as Artifact
    from prompt_tuning.tagging.tagger import Tag as Tag
    from prompt_tuning.tagging.tagger import Tagger as Tagger

_HOME = {
    "Artifact": "tagging.artifact",
    "Category": "categories",
    "Tag": "tagging.tagger",
    "Tagger": "tagging.tagger",
    "VLMSettings": "backbones.base",
    "load_vlm": "backbones",
    "tune": "api",
}


def __getattr__(name: str) -> Any:
    # Looked up late: a command that only reads a config should not wait for PyTorch.
    if name in _HOME:
        return getattr(import_module(f"prompt_tuning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'prompt_tuning' has no attribute {name!r}")
