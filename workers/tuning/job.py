"""The job of tuning one seed, and its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.selection import SelectingHalf
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.storage import canonical_json
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from prompt_tuning.tuning.trainer import TuningSettings
from workers.placement import NodeSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

CLASSES = "class_features.safetensors"
HISTORY = "history.json"

OnEpoch = Callable[[dict[str, float]], None]
OnEpochOf = Callable[["TuningJob", dict[str, float]], None]
# The reason why workers are not up yet: the cluster has too few nodes, or these are not free, or
# processes still start.
Lack = Literal["nodes", "resources", "processes"]
# Called with the seconds since the start and the reason.
OnWaiting = Callable[[float, Lack], None]


class DistributedTuningSettings(NodeSettings, TuningSettings):
    """`workers` share each batch. `auto`: a GPU each where there are enough, at most one CPU."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | Literal["auto"] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class TuningJob:
    """The inputs for tuning one seed. Paths are absolute: workers change directory.

    `threads`: of each worker, on a CPU. `selecting`: the labelled images that each epoch's prompts
    are measured on, where images choose. `slots`: the actor (`Slots`) at which workers that have
    loaded wait for their turn; None outside a sweep.
    """

    captions: Path
    features: Path
    held_out: float
    categories: CategoryList
    hierarchy: Hierarchy
    vlm: VLMSettings
    prompts: PromptSettings
    scoring: ScoringSettings
    losses: LossSettings
    tuning: DistributedTuningSettings
    seed: int
    cache: Path
    progress: Path
    threads: int = 1
    selecting: SelectingHalf | None = None
    slots: ActorHandle | None = None

    @property
    def name(self) -> str:
        """A name that is unique among the jobs of one storage."""
        return self.progress.name

    @property
    def not_finite(self) -> Path:
        """The file in which rank 0 records a batch whose loss was not finite."""
        return self.progress.with_suffix(".not_finite.json")


@dataclass(frozen=True)
class Tuned:
    """The result of one seed.

    `classes`: the class features of the best epoch ("global" and "local", `(classes, dim)`) and
    the tokens that made them (see `TuningRun.best_tokens`). `history`: as `read_history`.
    """

    classes: dict[str, torch.Tensor]
    history: list[dict[str, float]]

    def write(self, staging: Path) -> None:
        """Write both into a stage's folder."""
        save_file(self.classes, staging / CLASSES)
        (staging / HISTORY).write_text(canonical_json(self.history), "utf-8")


def read_classes(folder: Path) -> ClassFeatures:
    """The class features that `Tuned.write` wrote."""
    tensors = load_file(folder / CLASSES)
    return ClassFeatures(tensors["global"], tensors["local"])


def read_tokens(folder: Path) -> dict[str, torch.Tensor]:
    """The tokens that made these class features (see `TuningRun.best_tokens`)."""
    tensors = load_file(folder / CLASSES)
    return {name: tensor for name, tensor in tensors.items() if name not in ("global", "local")}


def read_history(folder: Path) -> list[dict[str, float]]:
    """One entry per epoch: epoch, loss, held_out_loss, held_out_map (0-100)."""
    history: list[dict[str, float]] = json.loads((folder / HISTORY).read_bytes())
    return history
