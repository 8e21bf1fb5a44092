"""The image–text model of a task: its device, and one that an earlier task has loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import ray

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, VLMSettings


def task_device() -> str:
    """Where this task or actor computes: on a GPU only if Ray has given it one.

    Ray does not hide a node's GPUs from tasks without one (since 2.60), so these must not look for
    GPUs: that alone would take memory of one.
    """
    return "cuda" if ray.get_gpu_ids() else "cpu"


def loaded_vlm(settings: VLMSettings, cache: Path) -> VLM:
    """The model on this task's device; Ray gives a process one task after the other."""
    return _loaded(settings, cache, task_device())


@lru_cache(maxsize=1)
def _loaded(settings: VLMSettings, cache: Path, device: str) -> VLM:
    return load_vlm(settings, device, cache)
