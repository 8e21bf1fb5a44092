"""The models of the tagging service: a Ray Serve deployment that scores images in batches.

Each replica checks its artifacts every second and switches to a new version once that is loaded; an
image keeps the version that it started with. While a new version cannot be loaded, the previous one
stays, `state` gives the reason, and the next check tries again: a copy may still be under way.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from ray import serve
from torch import Tensor

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM
from prompt_tuning.images import TooManyPixelsError, UnknownFormatError, read_image
from prompt_tuning.label_names import LabelNames
from prompt_tuning.tagging.artifact import Artifact, version_of
from prompt_tuning.tagging.tag_stream import TagRule
from prompt_tuning.tagging.tagger import Tag, Tagger
from workers.serving.device import DeviceLostError, is_lost
from workers.serving.review.encoded_files import EncodedFiles
from workers.serving.review.improvement import Improvement, ScoredFiles, improve
from workers.serving.threads import Threads

_CHECK_EACH_S = 1.0
_BATCH_WAIT_S = 0.005

Result = TypeVar("Result")


@dataclass(frozen=True)
class Refusal:
    """Why an image has no result, with the HTTP status, and in how many s to try again."""

    status: int
    reason: str
    retry_after: int | None = None


@dataclass(frozen=True)
class DeviceLost:
    """This replica cannot compute any more. `fresh`: it found that out while it tried this."""

    fresh: bool


@dataclass(frozen=True)
class TaggedImage:
    """An image's tags, best first, and the version of the artifact that gave them."""

    version: str
    tags: list[Tag]


@dataclass(frozen=True)
class ImageRegions:
    """For each label a grid of shares, which add up to 1 (see `Tagger.heat_maps`)."""

    version: str
    regions: dict[str, list[list[float]]]


@dataclass(frozen=True)
class Label:
    """A label, and the lowest score at which it is a tag."""

    name: str
    threshold: float


@dataclass(frozen=True)
class ArtifactState:
    """The served version of an artifact, if any; `problem`: why newer files are not served."""

    version: str | None
    labels: list[Label]
    problem: str | None


class _Served(NamedTuple):
    version: str
    tagger: Tagger


class _Waiting(NamedTuple):
    """A decoded image that waits for its scores."""

    tagger: Tagger
    pixels: Tensor


@dataclass
class _Artifacts:
    """The artifacts of a replica, by name. Artifacts with the same image–text model share it.

    `reload` replaces the dictionaries `served` and `problems`, because other threads read them.
    """

    folders: dict[str, Path]
    device: str
    cache: Path
    served: dict[str, _Served] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    _vlms: dict[str, tuple[str, VLM]] = field(default_factory=dict)

    def reload(self) -> None:
        """Load new versions. Errors are kept as problems."""
        problems = {}
        replaced = False
        for name, folder in self.folders.items():
            try:
                version = version_of(folder)
                if name not in self.served or self.served[name].version != version:
                    loaded = _Served(version, self._tagger(name, folder))
                    replaced = replaced or name in self.served
                    self.served = self.served | {name: loaded}
                    del loaded
            except Exception as error:  # of any kind: the previous version stays
                # /health is public, so it must not show folders of this machine.
                problems[name] = " ".join(str(error).split()).replace(str(folder), name)
        self.problems = problems
        if replaced:
            self.free()

    def refusal(self, name: str) -> Refusal:
        """Why an artifact is not served."""
        problem = self.problems.get(name, "not loaded yet")
        return Refusal(503, f"{name} cannot be served: {problem}", retry_after=5)

    def _tagger(self, name: str, folder: Path) -> Tagger:
        artifact = Artifact.load(folder)
        settings = artifact.vlm_settings.model_dump_json()
        shared = [vlm for its_settings, vlm in self._vlms.values() if its_settings == settings]
        vlm = shared[0] if shared else load_vlm(artifact.vlm_settings, self.device, self.cache)
        self._vlms[name] = settings, vlm  # frees the previous model, unless it is shared
        return Tagger(artifact, vlm)

    def free(self) -> None:
        """Give the memory of replaced models back. Batches under way may still hold one."""
        gc.collect()  # modules refer to each other
        if self.device == "cuda":
            torch.cuda.empty_cache()


class TaggingModel:
    """Tags images with any of its artifacts. On CPUs, `threads` batches run at once.

    `most`: images that may wait in one replica.
    """

    def __init__(
        self,
        folders: dict[str, Path],
        cache: Path,
        max_pixels: int,
        most: int,
        gpus: float,
        threads: int,
    ) -> None:
        self._artifacts = _Artifacts(folders, "cuda" if gpus else "cpu", cache)
        self._artifacts.reload()
        if not self._artifacts.served:
            raise ValueError("; ".join(self._artifacts.problems.values()))
        self._max_pixels, self._encoded = max_pixels, EncodedFiles()
        self._lost: str | None = None
        self._most, self._threads = most, Threads(threads, most)
        tagger = next(iter(self._artifacts.served.values())).tagger

        @serve.batch(
            max_batch_size=tagger.batch,
            batch_wait_timeout_s=_BATCH_WAIT_S,
            max_concurrent_batches=1 if gpus else threads,
        )
        async def scored(images: list[_Waiting]) -> list[np.ndarray]:
            return await self._computed(_scores, images)

        self._scored: Any = scored
        threading.Thread(target=self._watch, daemon=True).start()

    def check_health(self) -> None:
        """For Ray Serve, which replaces a replica that raises here. Raises RuntimeError."""
        if self._lost:
            raise RuntimeError(f"the device is lost: {self._lost}")

    async def tag(
        self, name: str, image: bytes, rule: TagRule
    ) -> TaggedImage | Refusal | DeviceLost:
        """The tags of an image file."""
        if refused := self._refusal(name):
            return refused
        version, tagger = self._artifacts.served[name]
        try:
            pixels = await self._computed(self._decoded, image, tagger.pixels)
            if isinstance(pixels, Refusal):
                return pixels
            raw = await self._scored(_Waiting(tagger, pixels))
        except DeviceLostError:
            return DeviceLost(fresh=True)
        [tags] = tagger.tags(raw[None], rule.threshold, rule.top)
        return TaggedImage(version, tags)

    async def regions(
        self, name: str, image: bytes, labels: Sequence[str]
    ) -> ImageRegions | Refusal | DeviceLost:
        """The regions of an image file that show these labels."""
        if refused := self._refusal(name):
            return refused
        version, tagger = self._artifacts.served[name]
        rows = {label: LabelNames(tagger.names).find(label) for label in labels}
        unknown = [label for label, row in rows.items() if row is None]
        if unknown:
            return Refusal(422, f"{unknown[0]} is not a label of {name}")
        try:
            maps = await self._computed(self._decoded, image, tagger.heat_maps)
        except DeviceLostError:
            return DeviceLost(fresh=True)
        if isinstance(maps, Refusal):
            return maps
        rounded = {label: maps[row].round(5).tolist() for label, row in rows.items()}
        return ImageRegions(version, rounded)

    async def score_files(
        self, name: str, files: Sequence[Path]
    ) -> ScoredFiles | Refusal | DeviceLost:
        """The scores of files that this machine has, exactly as `datafree tag` gives them."""
        if self._lost:
            return DeviceLost(fresh=False)
        if name not in self._artifacts.served:
            return self._artifacts.refusal(name)
        version, tagger = self._artifacts.served[name]

        def scores() -> list[np.ndarray | str]:
            return [
                each if isinstance(each, str) else tagger.calibrated(tagger.score_features(each))[0]
                for each in self._encoded.features(tagger.vlm, files)
            ]

        try:
            return ScoredFiles(version, tagger.thresholds, await self._computed(scores))
        except DeviceLostError:
            return DeviceLost(fresh=True)

    async def improve(
        self, name: str, original: Path, folder: Path, labels: tuple[str, ...]
    ) -> Improvement | Refusal:
        """Publish an adapted artifact (see `improve`), which `reload` finds."""
        if name not in self._artifacts.served:
            return self._artifacts.refusal(name)
        improved = self._artifacts.folders[name]
        vlm = self._artifacts.served[name].tagger.vlm

        def work() -> Improvement | Refusal:
            try:
                return improve(original, improved, folder, labels, vlm, self._encoded)
            except ValueError as error:
                return Refusal(422, " ".join(str(error).split()))

        return await asyncio.to_thread(work)  # the pool is for requests

    async def state(self) -> dict[str, ArtifactState]:
        """The state of each artifact, by name."""
        served, problems = self._artifacts.served, self._artifacts.problems
        return {
            name: _state(served.get(name), problems.get(name)) for name in self._artifacts.folders
        }

    def _watch(self) -> None:
        while True:
            time.sleep(_CHECK_EACH_S)
            self._artifacts.reload()

    def _refusal(self, name: str) -> Refusal | DeviceLost | None:
        """Why this replica takes no image now."""
        if self._lost:
            return DeviceLost(fresh=False)
        if name not in self._artifacts.served:
            return self._artifacts.refusal(name)
        if self._threads.full():
            waiting = f"{self._most} images are waiting for one model; retry in 1 s"
            return Refusal(429, waiting, retry_after=1)
        return None

    async def _computed(self, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of work in a thread. Raises DeviceLostError."""
        try:
            return await self._threads.run(work, *arguments)
        except Exception as error:
            if not is_lost(error):
                raise
            self._lost = str(error).partition("\n")[0][:200]
            raise DeviceLostError(self._lost) from None

    def _decoded(self, image: bytes, use: Callable[[Image], Result]) -> Result | Refusal:
        """The result of `use` for the decoded image, or the refusal if it cannot be read."""
        try:
            return use(read_image(image, self._max_pixels))
        except ValueError as error:
            status = {UnknownFormatError: 415, TooManyPixelsError: 413}.get(type(error), 422)
            return Refusal(status, str(error))


def _state(served: _Served | None, problem: str | None) -> ArtifactState:
    if served is None:
        return ArtifactState(None, [], problem)
    pairs = zip(served.tagger.names, served.tagger.thresholds.tolist(), strict=True)
    return ArtifactState(served.version, [Label(*pair) for pair in pairs], problem)


def _scores(images: list[_Waiting]) -> list[np.ndarray]:
    """Raw scores of each image, `(classes,)`. The images of one artifact form a batch."""
    scores: dict[int, np.ndarray] = {}
    for tagger in {id(image.tagger): image.tagger for image in images}.values():
        rows = [row for row, image in enumerate(images) if image.tagger is tagger]
        batch = tagger.score_pixels(torch.stack([images[row].pixels for row in rows]))
        scores |= dict(zip(rows, batch, strict=True))
    return [scores[row] for row in range(len(images))]
