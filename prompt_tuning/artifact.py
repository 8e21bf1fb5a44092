"""The artifact: tuned class features with all that a reader needs to use them, and no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prompt_tuning.calibration import Calibration
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation import ClassFeatures
from prompt_tuning.new_labels import (
    TunedTokens,
    check_labels,
    prompt_new_labels,
    with_new_labels,
)
from prompt_tuning.store import is_published, publishing
from prompt_tuning.vlm import VLM, Geometry, VLMIdentity, VLMSettings

_FEATURES = "class_features.safetensors"
_TOKENS = "tokens.safetensors"
_DESCRIPTION = "artifact.json"
_VERSION = 2


@dataclass(frozen=True)
class Artifact:
    """Class features of both branches, names, hierarchy, scoring, calibration, and the VLM.

    `vlm_settings` load the VLM, `vlm` is what class features depend on of it. `tokens` are behind
    the class features, for labels that come later.
    """

    categories: CategoryList
    tree: dict[str, dict[str, list[str]]]
    classes: ClassFeatures
    tokens: TunedTokens
    geometry: Geometry
    fusion: str
    calibration: Calibration
    vlm_settings: VLMSettings
    vlm: VLMIdentity

    def save(self, folder: Path) -> None:
        """Write the artifact into a folder of its own, in place of what was there."""
        description = {
            "version": _VERSION,
            "categories": self.categories.model_dump(mode="json")["categories"],
            "hierarchy": self.tree,
            "geometry": self.geometry.model_dump(mode="json"),
            "fusion": self.fusion,
            "calibration": self.calibration.to_json(),
            "handcrafted": self.tokens.handcrafted,
            "vlm_settings": self.vlm_settings.model_dump(mode="json"),
            "vlm": self.vlm.model_dump(mode="json"),
        }
        with publishing(folder, replace=True) as staging:
            (staging / _DESCRIPTION).write_text(
                json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )
            tensors = {"global": self.classes.pooled, "local": self.classes.local}
            save_file({k: v.contiguous() for k, v in tensors.items()}, staging / _FEATURES)
            save_file(self.tokens.tensors, staging / _TOKENS)

    @classmethod
    def load(cls, folder: Path | str) -> Artifact:
        """Read an artifact.

        Raises:
            ValueError: when the folder holds none, a damaged one, or one of another version.
        """
        if not is_published(Path(folder)) or not Path(folder, _DESCRIPTION).exists():
            raise ValueError(f"{folder}: no artifact, or one that was altered after it was written")
        described: dict[str, Any] = json.loads(Path(folder, _DESCRIPTION).read_text("utf-8"))
        if described.get("version") != _VERSION:
            raise ValueError(
                f"{folder}: artifact of version {described.get('version')}, and this is {_VERSION} "
                "(with calibrated scores and tokens); run its config again"
            )
        tensors = load_file(Path(folder, _FEATURES))
        return cls(
            categories=CategoryList.model_validate_json(
                json.dumps({"categories": described["categories"]})
            ),
            tree=described["hierarchy"],
            classes=ClassFeatures(tensors["global"], tensors["local"]),
            tokens=TunedTokens(load_file(Path(folder, _TOKENS)), described["handcrafted"]),
            geometry=Geometry.model_validate(described["geometry"]),
            fusion=described["fusion"],
            calibration=Calibration.from_json(described["calibration"]),
            vlm_settings=VLMSettings.model_validate(described["vlm_settings"]),
            vlm=VLMIdentity.model_validate(described["vlm"]),
        )

    def differs_in(self, vlm: VLM) -> list[str]:
        """In what of its identity a VLM is not the one that the artifact was tuned for."""
        return [
            name
            for name in VLMIdentity.model_fields
            if getattr(vlm.identity, name) != getattr(self.vlm, name)
        ]

    def check_vlm(self, vlm: VLM) -> None:
        """Raises ValueError when `vlm` is not the one that the artifact was tuned for."""
        if differing := self.differs_in(vlm):
            raise ValueError(
                f"the artifact was tuned for {self.vlm.model} at {self.vlm.resolution}; "
                f"this model differs in {', '.join(differing)}"
            )

    def groups(self) -> list[list[int]]:
        """The categories of each fine group, as places on the classes axis."""
        place = {name: c for c, name in enumerate(self.categories.names)}
        fines = [names for coarse in self.tree.values() for names in coarse.values()]
        return [[place[name] for name in names] for names in fines]

    def adding(self, labels: Sequence[str], vlm: VLM) -> Artifact:
        """With more labels after its categories, without tuning (see new_labels.py).

        Their calibration is what the categories share.

        Raises:
            ValueError: for labels that are no names or stand for a category already, and when `vlm`
                is not the one that the artifact was tuned for.
        """
        self.check_vlm(vlm)
        check_labels(labels)
        categories = with_new_labels(self.categories, labels)
        added = prompt_new_labels(vlm, labels, self.categories, self.groups(), self.tokens)
        fines = [(coarse, fine) for coarse, of_coarse in self.tree.items() for fine in of_coarse]
        tree = {
            coarse: {fine: list(names) for fine, names in of_coarse.items()}
            for coarse, of_coarse in self.tree.items()
        }
        for label, group in zip(labels, added.groups, strict=True):
            coarse, fine = fines[group]
            tree[coarse][fine].append(label)
        return replace(
            self,
            categories=categories,
            tree=tree,
            classes=ClassFeatures(
                torch.cat([self.classes.pooled, added.features.pooled]),
                torch.cat([self.classes.local, added.features.local]),
            ),
            tokens=self.tokens.adding(added.contexts),
            calibration=self.calibration.adding(len(labels)),
        )
