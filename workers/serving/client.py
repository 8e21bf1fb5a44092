"""Calls from the front of the tagging service to its models, retried once when a model dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.model import ArtifactState, DeviceLost
from workers.serving.pace import Pace
from workers.serving.requests import RequestImage, refuse
from workers.serving.traffic import one_line

_STATE_S = 5.0
_RESTARTING = "the model is restarting; retry in 5 s"
_UNHEALTHY_S = 0.5  # until Ray Serve takes a replica that lost its device away
# Smaller arguments travel with the call, larger ones through Ray's object store.
_STORED_BYTES = 100_000

_log = logging.getLogger(__name__)


class ModelFailedError(Exception):
    """A model raised an error; in one line, without Ray's traceback of another process."""


class ModelCalls:
    """The replicas of `TaggingModel`."""

    def __init__(self, handle: DeploymentHandle, limits: Limits, metrics: Metrics) -> None:
        self._handle, self._limits, self._metrics = handle, limits, metrics
        self._waiting, self._pace = 0, Pace()

    async def call_for_each(
        self, images: list[RequestImage], method: str, artifact: str, argument: object
    ) -> list[Any]:
        """The results of a method of `TaggingModel` for each image. Raises HTTPException.

        Takes the images out of the list, so that a large one is in memory once: in Ray's store.
        """
        with self._admitted(count := len(images)):
            stored = [_stored(images.pop(0).content) for _ in range(count)]
            calls = [
                asyncio.ensure_future(self.call(method, artifact, one, argument)) for one in stored
            ]
            try:
                async with asyncio.timeout(self._limits.seconds):
                    results = await asyncio.gather(*calls)
            except TimeoutError:
                refuse(504, f"the request timed out after {self._limits.seconds:g} s")
            except (RayActorError, RayServeException) as error:
                _log.warning("no model answers: %s", one_line(error))
                refuse(503, _RESTARTING, retry_after=5)
            finally:  # those that one failure leaves under way count until they end
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            self._pace.finished(count)
            return results

    async def state(self) -> dict[str, ArtifactState]:
        """What a replica serves. Raises HTTPException."""
        try:
            async with asyncio.timeout(_STATE_S):
                return await self.call("state")
        except (TimeoutError, RayActorError, RayServeException):
            refuse(503, _RESTARTING, retry_after=5)

    async def call(self, method: str, *arguments: object) -> Any:
        """A method's result, without a limit.

        Raises RayActorError or RayServeException when no model answers, ModelFailedError when one
        fails.
        """
        tries = 2
        while True:
            try:
                result = await self._call_once(method, *arguments)
                died = isinstance(result, DeviceLost) and result.fresh
                if not isinstance(result, DeviceLost):
                    return result
                if died and tries == 1:
                    raise ModelFailedError("two models lost their device with this image")
                await asyncio.sleep(_UNHEALTHY_S)
            except (RayActorError, RayServeException):  # this replica died; another one may answer
                if tries == 1:
                    raise
                died = True
            if died:
                tries -= 1
                self._metrics.second_tries.inc()

    async def _call_once(self, method: str, *arguments: object) -> Any:
        answer = self._handle.options(method_name=method).remote(*arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()  # else the model works on for a client that is gone
            raise
        except (RayActorError, RayServeException):
            raise
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise ModelFailedError(one_line(cause)) from None

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        missing = self._waiting + count - self._limits.waiting
        if missing > 0:
            seconds = self._pace.seconds_for(missing)
            busy = f"{self._waiting} of at most {self._limits.waiting} images are waiting"
            refuse(429, f"{busy}; retry in {seconds} s", retry_after=seconds)
        self._waiting += count
        self._metrics.waiting.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= count
            self._metrics.waiting.set(self._waiting)


def _stored(content: bytes) -> object:
    return ray.put(content) if len(content) > _STORED_BYTES else content
