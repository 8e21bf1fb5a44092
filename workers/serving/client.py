"""Questions of the tagging service to its models: within limits, and once more when one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from workers.serving.limits import Limits
from workers.serving.metrics import Measures
from workers.serving.model import ArtifactState
from workers.serving.requests import RequestImage, refuse

_HEALTH_S = 5.0


class ModelCalls:
    """The model replicas, as a request sees them."""

    def __init__(self, handle: DeploymentHandle, limits: Limits, measures: Measures) -> None:
        self._handle, self._limits, self._measures = handle, limits, measures
        self._waiting = 0

    async def ask_for_each(
        self, images: list[RequestImage], method: str, name: str, rule: object
    ) -> list[Any]:
        """What a method of `TaggingModel` gave for each image. Raises HTTPException."""
        with self._admitted(len(images)):
            try:
                async with asyncio.timeout(self._limits.seconds):
                    asked = (self._ask(method, name, of.content, rule) for of in images)
                    return await asyncio.gather(*asked)
            except TimeoutError:
                refuse(504, f"this took longer than {self._limits.seconds:g} seconds")
            except (RayActorError, RayServeException):
                refuse(503, "the model is being started again; try again soon", retry_after=5)

    async def state(self) -> dict[str, ArtifactState]:
        """What is served. Raises what stands in the way."""
        async with asyncio.timeout(_HEALTH_S):
            return await self._ask("state")

    async def _ask(self, method: str, *arguments: object) -> Any:
        try:
            return await self._answer(method, *arguments)
        except (RayActorError, RayServeException):  # the replica is gone, and others are not
            self._measures.second_tries.inc()
            return await self._answer(method, *arguments)

    async def _answer(self, method: str, *arguments: object) -> Any:
        answer = self._handle.options(method_name=method).remote(*arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()  # else the model goes on with what nobody waits for
            raise

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        if self._waiting + count > self._limits.waiting:
            refuse(429, f"{self._waiting} images are waiting already; try again", retry_after=1)
        self._waiting += count
        self._measures.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= count
            self._measures.waiting.set(self._waiting)
