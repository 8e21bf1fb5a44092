"""Calls from the front of the tagging service to its models, retried once when a model dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.model import ArtifactState
from workers.serving.requests import RequestImage, refuse

_STATE_S = 5.0
_RESTARTING = "the model is restarting; retry in 5 s"


class ModelCalls:
    """The replicas of `TaggingModel`."""

    def __init__(self, handle: DeploymentHandle, limits: Limits, metrics: Metrics) -> None:
        self._handle, self._limits, self._metrics = handle, limits, metrics
        self._waiting = 0

    async def call_for_each(
        self, images: list[RequestImage], method: str, artifact: str, argument: object
    ) -> list[Any]:
        """The results of a method of `TaggingModel` for each image. Raises HTTPException."""
        with self._admitted(len(images)):
            try:
                async with asyncio.timeout(self._limits.seconds):
                    calls = (self.call(method, artifact, i.content, argument) for i in images)
                    return await asyncio.gather(*calls)
            except TimeoutError:
                refuse(504, f"the request timed out after {self._limits.seconds:g} s")
            except (RayActorError, RayServeException):
                refuse(503, _RESTARTING, retry_after=5)

    async def state(self) -> dict[str, ArtifactState]:
        """What a replica serves. Raises HTTPException."""
        try:
            async with asyncio.timeout(_STATE_S):
                return await self.call("state")
        except (TimeoutError, RayActorError, RayServeException):
            refuse(503, _RESTARTING, retry_after=5)

    async def call(self, method: str, *arguments: object) -> Any:
        """A method's result, without a limit. Raises RayActorError or RayServeException."""
        try:
            return await self._call_once(method, *arguments)
        except (RayActorError, RayServeException):  # this replica died; another one may answer
            self._metrics.second_tries.inc()
            return await self._call_once(method, *arguments)

    async def _call_once(self, method: str, *arguments: object) -> Any:
        answer = self._handle.options(method_name=method).remote(*arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()  # else the model works on for a client that is gone
            raise

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        if self._waiting + count > self._limits.waiting:
            busy = f"{self._waiting} of at most {self._limits.waiting} images are waiting"
            refuse(429, f"{busy}; retry in 1 s", retry_after=1)
        self._waiting += count
        self._metrics.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= count
            self._metrics.waiting.set(self._waiting)
