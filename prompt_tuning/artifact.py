"""The artifact: tuned class features with all that a reader needs to use them, and no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation import ClassFeatures
from prompt_tuning.scoring import branch_scores, fuse
from prompt_tuning.store import is_published, publishing
from prompt_tuning.vlm import VLM, Geometry, VLMIdentity

_FEATURES = "class_features.safetensors"
_DESCRIPTION = "artifact.json"
_VERSION = 1


@dataclass(frozen=True)
class Artifact:
    """Class features of both branches, names, hierarchy, scoring, and the identity of the VLM."""

    categories: CategoryList
    tree: dict[str, dict[str, list[str]]]
    classes: ClassFeatures
    geometry: Geometry
    fusion: str
    vlm: VLMIdentity

    def save(self, folder: Path) -> None:
        """Write the artifact into a folder of its own, in place of what was there."""
        description = {
            "version": _VERSION,
            "categories": self.categories.model_dump(mode="json")["categories"],
            "hierarchy": self.tree,
            "geometry": self.geometry.model_dump(mode="json"),
            "fusion": self.fusion,
            "vlm": self.vlm.model_dump(mode="json"),
        }
        with publishing(folder, replace=True) as staging:
            (staging / _DESCRIPTION).write_text(
                json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )
            tensors = {"global": self.classes.pooled, "local": self.classes.local}
            save_file({k: v.contiguous() for k, v in tensors.items()}, staging / _FEATURES)

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
            raise ValueError(f"{folder}: artifact of version {described.get('version')}")
        tensors = load_file(Path(folder, _FEATURES))
        return cls(
            categories=CategoryList.model_validate_json(
                json.dumps({"categories": described["categories"]})
            ),
            tree=described["hierarchy"],
            classes=ClassFeatures(tensors["global"], tensors["local"]),
            geometry=Geometry.model_validate(described["geometry"]),
            fusion=described["fusion"],
            vlm=VLMIdentity.model_validate(described["vlm"]),
        )

    def tag(
        self, vlm: VLM, images: Sequence[Image.Image], top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top` best categories of each picture with their scores, best first.

        Raises:
            ValueError: when `vlm` is not the one that the artifact was tuned for.
        """
        pixels = torch.stack([vlm.preprocess(image) for image in images]).to(vlm.device)
        best = self.scores(vlm, pixels).topk(min(top, len(self.categories)))
        names = self.categories.names
        return [
            [(names[c], score) for c, score in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @torch.no_grad()
    def scores(self, vlm: VLM, pixels: torch.Tensor) -> torch.Tensor:
        """Fused scores `(images, classes)` of preprocessed pixels.

        Raises:
            ValueError: when `vlm` is not the one that the artifact was tuned for.
        """
        if vlm.identity != self.vlm:
            differing = [
                name
                for name in VLMIdentity.model_fields
                if getattr(vlm.identity, name) != getattr(self.vlm, name)
            ]
            raise ValueError(
                f"the artifact was tuned for {self.vlm.model} at {self.vlm.resolution}; "
                f"this model differs in {', '.join(differing)}"
            )
        images = vlm.encode_image(pixels)
        branches = branch_scores(images, self.classes.pooled, self.classes.local, self.geometry)
        return fuse(*branches, self.geometry, self.fusion)
