"""The work behind a review: scoring its images, and improving the artifact, while people answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from workers.serving.client import ModelCalls
from workers.serving.model import Refusal
from workers.serving.review.improvement import Improvement, ScoredFiles
from workers.serving.review.session import ReviewFolder, ReviewSession

_FILES_PER_CALL = 8  # so that tags that someone waits for are not held up for long
_CALLS_AT_ONCE = 4
_RETRY_S = 0.2
_PATIENCE_S = 60.0  # a model finds a new version within seconds


class ReviewWork:
    """Runs in the event loop of the front; the models do the computing.

    `version`: of the artifact whose scores are wanted. `improving`: whether an artifact is being
    adapted. `lines`: sentences about the last one, `error`: why there is none, and `seconds`: from
    the request to the scores of all images.
    """

    def __init__(
        self, review: ReviewFolder, session: ReviewSession, models: ModelCalls, name: str
    ) -> None:
        self._review, self._session, self._models, self._name = review, session, models, name
        self.version: str | None = None
        self.improving = False
        self.lines: list[str] = []
        self.error: str | None = None
        self.seconds: float | None = None
        self._scoring: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Score all images with whatever version is served now."""
        self._score_again(None, time.monotonic())

    def improve(self) -> None:
        """Adapt the artifact to all answers so far, unless that is under way."""
        if not self.improving:
            self.improving, self.error, self.lines, self.seconds = True, None, [], None
            self._keep(self._improve())

    @property
    def scoring(self) -> bool:
        """Whether images still wait for scores of this version."""
        return self._scoring is not None and not self._scoring.done()

    async def _improve(self) -> None:
        begun = time.monotonic()
        try:
            done: Improvement | Refusal = await self._models.call(
                "improve",
                self._name,
                self._review.original,
                self._review.folder,
                self._session.labels,
            )
        except (RayActorError, RayServeException):
            self.error = "the process that adapts the artifact died twice; try again"
        except Exception as error:  # else nobody would be told
            self.error = f"the artifact cannot be improved: {' '.join(str(error).split())[:500]}"
            raise
        else:
            if isinstance(done, Refusal):
                self.error = done.reason.replace(f"{self._review.folder}/", "")
            else:
                self.lines = [line.replace(f"{self._review.folder}/", "") for line in done.lines]
                self._session.learned()
                self._score_again(done.version, begun)
        finally:
            self.improving = False

    def _score_again(self, version: str | None, begun: float) -> None:
        if self._scoring:
            self._scoring.cancel()
        self.version = version
        self._scoring = self._keep(self._score_all(begun, improved=version is not None))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references
        task.add_done_callback(self._tasks.discard)
        return task

    async def _score_all(self, begun: float, improved: bool) -> None:
        coming = iter(self._chunks())
        async with asyncio.TaskGroup() as group:
            for _ in range(_CALLS_AT_ONCE):
                group.create_task(self._score_some(coming))
        if improved:
            self.seconds = time.monotonic() - begun

    def _chunks(self) -> Iterator[list[int]]:
        """Places of images, best first, so that what comes next is known early."""
        order = self._session.most_valuable_first()
        for start in range(0, len(order), _FILES_PER_CALL):
            yield order[start : start + _FILES_PER_CALL]

    async def _score_some(self, coming: Iterator[list[int]]) -> None:
        for places in coming:
            scored = await self._scored(places)
            for place, scores in zip(places, scored.scores, strict=True):
                self._session.set_scores(place, scored.version, scored.thresholds, scores)

    async def _scored(self, places: list[int]) -> ScoredFiles:
        """The scores of these images by the wanted version, which a model may still be loading.

        If only another one comes, somebody has replaced the artifact: all images get its scores.
        """
        files = [self._session.files[place] for place in places]
        begun = time.monotonic()
        while True:
            try:
                scored = await self._models.call("score_files", self._name, files)
            except (RayActorError, RayServeException):
                scored = None
            if isinstance(scored, ScoredFiles):
                self.version = self.version or scored.version
                if scored.version == self.version:
                    return scored
                if time.monotonic() - begun > _PATIENCE_S:
                    self.error = (
                        "the service does not serve the improved artifact; was it replaced?"
                    )
                    self._score_again(None, begun)
            await asyncio.sleep(_RETRY_S)
