"""The artifact: tuned class features and everything needed to use them, without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompt_tuning.backbones.base import VLM, Geometry, VLMIdentity, VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.settings import Settings, message_of
from prompt_tuning.storage import MANIFEST, VERSION_DIGITS, file_digest, find_damage, publishing
from prompt_tuning.tagging.calibration import Calibration, CalibrationValues
from prompt_tuning.tagging.new_labels import BRANCHES, TunedTokens, check_labels, prompt_new_labels
from prompt_tuning.tagging.starter import artifact_folder

_FEATURES = "class_features.safetensors"
_TOKENS = "tokens.safetensors"
_DESCRIPTION = "artifact.json"
FILES = (_DESCRIPTION, _FEATURES, _TOKENS)
"""An artifact's own files, beside the manifest."""
_VERSION = 2


class Learned(Settings):
    """What labelled images taught an artifact.

    `by`: the command. `moved`: whether class features moved, or only scores and thresholds.
    `parent`: the version of the artifact that it started from. `images`: SHA-256 of each image's
    file. `figures`: sentences about its quality on images that did not teach it.
    """

    by: Literal["adapt", "calibrate"]
    moved: bool
    parent: str
    images: tuple[str, ...]
    figures: tuple[str, ...]


class _Description(Settings):
    """The content of `artifact.json`."""

    version: int
    categories: Annotated[tuple[Category, ...], Field(min_length=2)]
    hierarchy: dict[str, dict[str, tuple[str, ...]]]
    geometry: Geometry
    fusion: Literal["mean", "softmax"]
    calibration: CalibrationValues
    handcrafted: dict[str, float]
    vlm_settings: VLMSettings
    vlm: VLMIdentity
    learned: Learned | None = None

    @model_validator(mode="after")
    def _of_the_same_categories(self) -> _Description:
        names = [category.name for category in self.categories]
        fine_groups = [fine for coarse in self.hierarchy.values() for fine in coarse.values()]
        if sorted(name for fine in fine_groups for name in fine) != sorted(names):
            raise ValueError("hierarchy must name each of categories once")
        if set(self.handcrafted) != set(BRANCHES):
            raise ValueError(f"handcrafted must be of {' and '.join(BRANCHES)}")
        for name in ("slopes", "offsets", "thresholds"):
            if len(getattr(self.calibration, name)) != len(names):
                raise ValueError(f"calibration.{name} must have a number for each of categories")
        return self


@dataclass(frozen=True)
class Artifact:
    """Class features of both branches, names, hierarchy, scoring, calibration, and the VLM.

    `vlm_settings` load the VLM; `vlm` is its identity. `tokens` are the tuned tokens and
    residuals behind the class features; new labels use them. `learned`: what labelled images taught
    it, if any did. `version`: the first digits of the SHA-256 of the manifest that it was loaded
    with.
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
    learned: Learned | None = None
    version: str = ""

    def save(self, folder: Path | str) -> None:
        """Write the artifact into its own folder, in place of an earlier artifact.

        Raises:
            FileExistsError: if the folder contains something else.
        """
        folder = Path(folder)
        if holds_something_else(folder):
            raise FileExistsError(f"{folder}: holds something else; name a new folder")
        description = {
            "version": _VERSION,
            "categories": self.categories.model_dump(mode="json")["categories"],
            "hierarchy": self.tree,
            "geometry": self.geometry.model_dump(mode="json"),
            "fusion": self.fusion,
            "calibration": self.calibration.to_json(),
            "handcrafted": self.tokens.anchor_weights,
            "vlm_settings": self.vlm_settings.model_dump(mode="json"),
            "vlm": self.vlm.model_dump(mode="json"),
        }
        if self.learned:
            description["learned"] = self.learned.model_dump(mode="json")
        with publishing(folder, replace=True) as staging:
            (staging / _DESCRIPTION).write_text(
                json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )
            tensors = {"global": self.classes.pooled, "local": self.classes.local}
            save_file({k: v.contiguous() for k, v in tensors.items()}, staging / _FEATURES)
            save_file(self.tokens.tensors, staging / _TOKENS)

    @classmethod
    def load(cls, folder: Path | str) -> Artifact:
        """Read an artifact (`starter`: the packaged one); other files in its folder do not matter.

        Raises:
            ValueError: in one line, if the folder has no artifact, a damaged one, or one of another
                version.
        """
        folder = artifact_folder(folder)
        described = _read_description(folder)
        classes = _read_tensors(folder / _FEATURES)
        tokens = _read_tensors(folder / _TOKENS)
        for name in BRANCHES:
            if name not in classes:
                raise ValueError(f"{folder / _FEATURES}: {name} is missing")
            shape = classes[name].shape
            if shape != (len(described.categories), described.vlm.dim):
                raise ValueError(
                    f"{folder / _FEATURES}: {name} must be {len(described.categories)} × "
                    f"{described.vlm.dim} (got {' × '.join(map(str, shape))})"
                )
        return cls(
            categories=CategoryList(categories=described.categories),
            tree={
                coarse: {fine: list(names) for fine, names in fines.items()}
                for coarse, fines in described.hierarchy.items()
            },
            classes=ClassFeatures(classes["global"], classes["local"]),
            tokens=TunedTokens(tokens, described.handcrafted),
            geometry=described.geometry,
            fusion=described.fusion,
            calibration=Calibration.from_json(described.calibration.model_dump()),
            vlm_settings=described.vlm_settings,
            vlm=described.vlm,
            learned=described.learned,
            version=version_of(folder),
        )

    def differs_in(self, vlm: VLM) -> list[str]:
        """The fields in which a VLM's identity differs from the one that was tuned for."""
        return [
            name
            for name in VLMIdentity.model_fields
            if getattr(vlm.identity, name) != getattr(self.vlm, name)
        ]

    def check_vlm(self, vlm: VLM) -> None:
        """Raises ValueError if the artifact was tuned for another VLM."""
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
        """The artifact with new labels after its categories, without tuning (see new_labels.py).

        New labels get the calibration that the categories share.

        Raises:
            ValueError: for labels that are not names or already mean a category, and if the
                artifact was tuned for another VLM.
        """
        self.check_vlm(vlm)
        check_labels(labels)
        new = (Category(name=label) for label in labels)
        try:
            categories = CategoryList(categories=(*self.categories.categories, *new))
        except ValidationError as error:
            raise ValueError(message_of(error.errors()[0])) from None
        added = prompt_new_labels(vlm, labels, self.categories, self.groups(), self.tokens)
        tree = deepcopy(self.tree)
        fines = [names for coarse in tree.values() for names in coarse.values()]
        for label, group in zip(labels, added.groups, strict=True):
            fines[group].append(label)
        return replace(
            self,
            categories=categories,
            tree=tree,
            classes=ClassFeatures(
                torch.cat([self.classes.pooled, added.features.pooled]),
                torch.cat([self.classes.local, added.features.local]),
            ),
            tokens=self.tokens.adding(added.contexts, added.residuals),
            calibration=self.calibration.adding(len(labels)),
        )


def version_of(folder: Path) -> str:
    """The version of the artifact in a folder. Raises OSError if it cannot be read."""
    return file_digest(folder / MANIFEST)[:VERSION_DIGITS]  # the manifest has all files' digests


def holds_something_else(folder: Path) -> bool:
    """Whether an artifact written there would replace something that is not an artifact."""
    if folder.is_dir():
        return any(folder.iterdir()) and not (folder / _DESCRIPTION).is_file()
    return folder.exists()


def _read_description(folder: Path) -> _Description:
    """The description of an undamaged artifact. Raises ValueError in one line."""
    if not (folder / _DESCRIPTION).is_file():
        inner = folder / "artifact"
        hint = f"; did you mean {inner}?" if (inner / _DESCRIPTION).is_file() else ""
        raise ValueError(f"{folder}: no artifact there ({_DESCRIPTION} not found){hint}")
    _check_whole(folder, _DESCRIPTION)
    text = (folder / _DESCRIPTION).read_bytes()
    try:
        version = json.loads(text)["version"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder / _DESCRIPTION}: must be JSON with a version") from None
    if version != _VERSION:
        raise ValueError(
            f"{folder}: artifact of version {version}, and this is {_VERSION} "
            "(with calibrated scores and tokens); run its config again"
        )
    _check_whole(folder, _FEATURES, _TOKENS)
    try:
        return _Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        wrong = "is missing" if first["type"] == "missing" else message_of(first)
        raise ValueError(f"{folder / _DESCRIPTION}: {f'{key} {wrong}'.strip()}") from None


def _check_whole(folder: Path, *files: str) -> None:
    """Raises ValueError if a file was changed."""
    if damage := find_damage(folder, files):
        first = folder / files[0]
        pointer = first.is_file() and first.read_bytes().startswith(b"version https://git-lfs")
        hint = "; Git LFS has not fetched its content yet (git lfs pull)" if pointer else ""
        raise ValueError(f"{folder}: the artifact is damaged: {damage}{hint}")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """A file's tensors, all finite. Raises ValueError in one line."""
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} must be finite numbers (got NaN or infinity)")
    return tensors
