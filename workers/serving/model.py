"""The models of the tagging service: a Ray Serve deployment that scores images in batches.

Every replica looks each second whether an artifact was written anew, and takes the new one once it
is loaded; an image keeps the artifact that it began with. While the new one cannot be loaded, the
one before stays, `state` says why, and each look tries again: a copy may still be under way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from ray import serve
from torch import Tensor

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.images import TooManyPixelsError, UnknownFormatError, read_image
from prompt_tuning.label_names import LabelNames
from prompt_tuning.storage import MANIFEST, file_digest
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.tag_stream import TagRule
from prompt_tuning.tagging.tagger import Tag, Tagger

_LOOK_EACH_S = 1.0
_WAIT_FOR_A_BATCH_S = 0.005

Result = TypeVar("Result")


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer, with the HTTP status that says so."""

    status: int
    reason: str


@dataclass(frozen=True)
class TaggedImage:
    """An image's tags, best first, by an artifact of this version."""

    version: str
    tags: list[Tag]


@dataclass(frozen=True)
class ImageRegions:
    """Each label's regions, rows of shares that add up to 1 (see `Tagger.heat_maps`)."""

    version: str
    regions: dict[str, list[list[float]]]


@dataclass(frozen=True)
class ArtifactState:
    """What is served of an artifact, if any; `problem`: why what lies in its folder now is not."""

    version: str | None
    labels: tuple[str, ...]
    thresholds: list[float]
    problem: str | None


class _Served(NamedTuple):
    version: str
    tagger: Tagger


class _Waiting(NamedTuple):
    """An image that is read and waits for its scores."""

    tagger: Tagger
    pixels: Tensor


@dataclass
class _Artifacts:
    """The artifacts of a replica, by name; those of one image–text model share it.

    `look` puts new dictionaries in place of `served` and `problems`, as other threads read them.
    """

    folders: dict[str, Path]
    device: str
    cache: Path
    served: dict[str, _Served] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    _vlms: dict[str, tuple[str, VLM]] = field(default_factory=dict)

    def look(self) -> None:
        """Load what is not served yet. An error is kept as the problem."""
        problems = {}
        for name, folder in self.folders.items():
            try:
                version = file_digest(folder / MANIFEST)[:12]  # which has all its files' digests
                if name not in self.served or self.served[name].version != version:
                    loaded = _Served(version, self._tagger(name, folder))
                    self.served = self.served | {name: loaded}
            except Exception as error:  # whatever lies there, what is served stays
                # Anyone may read it at /health, where this machine's folders do not belong.
                problems[name] = " ".join(str(error).split()).replace(str(folder), name)
        self.problems = problems

    def refusal(self, name: str) -> Refusal:
        """Why an artifact is not served."""
        return Refusal(503, f"{name} cannot be served: {self.problems.get(name, 'not loaded yet')}")

    def _tagger(self, name: str, folder: Path) -> Tagger:
        artifact = Artifact.load(folder)
        settings = artifact.vlm_settings.model_dump_json()
        shared = [vlm for of, vlm in self._vlms.values() if of == settings]
        vlm = shared[0] if shared else load_vlm(artifact.vlm_settings, self.device, self.cache)
        self._vlms[name] = settings, vlm  # the one before goes with the last who shares it
        return Tagger(artifact, vlm)


class TaggingModel:
    """Tags images with any of its artifacts; `threads` batches are under way at once on CPUs."""

    def __init__(
        self, folders: dict[str, Path], cache: Path, max_pixels: int, gpus: float, threads: int
    ) -> None:
        self._artifacts = _Artifacts(folders, "cuda" if gpus else "cpu", cache)
        self._artifacts.look()
        if not self._artifacts.served:
            raise ValueError("; ".join(self._artifacts.problems.values()))
        self._max_pixels = max_pixels
        # Each thread works alone: many that share an operation wait for each other.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        some = next(iter(self._artifacts.served.values())).tagger

        @serve.batch(
            max_batch_size=some.batch,
            batch_wait_timeout_s=_WAIT_FOR_A_BATCH_S,
            max_concurrent_batches=1 if gpus else threads,
        )
        async def scored(images: list[_Waiting]) -> list[np.ndarray]:
            return await self._in_thread(_scores, images)

        self._scored: Any = scored
        threading.Thread(target=self._watch, daemon=True).start()

    async def tag(self, name: str, image: bytes, rule: TagRule) -> TaggedImage | Refusal:
        """The tags of an image, given as its file's content."""
        if name not in self._artifacts.served:
            return self._artifacts.refusal(name)
        version, tagger = self._artifacts.served[name]
        pixels = await self._in_thread(self._pixels, tagger, image)
        if isinstance(pixels, Refusal):
            return pixels
        raw = await self._scored(_Waiting(tagger, pixels))
        [tags] = tagger.tags(raw[None], rule.threshold, rule.top)
        return TaggedImage(version, tags)

    async def regions(
        self, name: str, image: bytes, labels: Sequence[str]
    ) -> ImageRegions | Refusal:
        """Which regions of an image speak for these labels."""
        if name not in self._artifacts.served:
            return self._artifacts.refusal(name)
        version, tagger = self._artifacts.served[name]
        rows = {label: LabelNames(tagger.names).find(label) for label in labels}
        unknown = [label for label, row in rows.items() if row is None]
        if unknown:
            return Refusal(422, f"{unknown[0]} is none of the labels of {name}")
        maps = await self._in_thread(self._heat_maps, tagger, image)
        if isinstance(maps, Refusal):
            return maps
        rounded = {label: maps[row].round(5).tolist() for label, row in rows.items()}
        return ImageRegions(version, rounded)

    async def state(self) -> dict[str, ArtifactState]:
        """What is served and what is not, by the artifacts' names."""
        served, problems = self._artifacts.served, self._artifacts.problems
        return {
            name: _state(served.get(name), problems.get(name)) for name in self._artifacts.folders
        }

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EACH_S)
            self._artifacts.look()

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _pixels(self, tagger: Tagger, image: bytes) -> Tensor | Refusal:
        try:
            return tagger.pixels(read_image(image, self._max_pixels))
        except ValueError as error:
            return _refusal(error)

    def _heat_maps(self, tagger: Tagger, image: bytes) -> np.ndarray | Refusal:
        try:
            return tagger.heat_maps(read_image(image, self._max_pixels))
        except ValueError as error:
            return _refusal(error)


def _state(served: _Served | None, problem: str | None) -> ArtifactState:
    if served is None:
        return ArtifactState(None, (), [], problem)
    version, tagger = served
    thresholds = [float(threshold) for threshold in tagger.thresholds]
    return ArtifactState(version, tagger.names, thresholds, problem)


def _scores(images: list[_Waiting]) -> list[np.ndarray]:
    """Raw scores of each image, `(classes,)`; those of one artifact are one batch."""
    scores: dict[int, np.ndarray] = {}
    for tagger in {id(image.tagger): image.tagger for image in images}.values():
        rows = [row for row, image in enumerate(images) if image.tagger is tagger]
        batch = tagger.score_pixels(torch.stack([images[row].pixels for row in rows]))
        scores |= dict(zip(rows, batch, strict=True))
    return [scores[row] for row in range(len(images))]


def _refusal(error: ValueError) -> Refusal:
    status = {UnknownFormatError: 415, TooManyPixelsError: 413}.get(type(error), 422)
    return Refusal(status, str(error))
