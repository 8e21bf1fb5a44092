"""The models of the tagging service as an application of Ray Serve."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError

from workers.serving.limits import Limits
from workers.serving.model import TaggingModel

APPLICATION = "datafree"
MODEL = TaggingModel.__name__

# Short, because the front drains first; with fewer replicas, requests are repeated on another one.
_SHUTDOWN: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 5.0,
}
# Ray Serve replaces a replica after three checks that failed.
_CHECK_HEALTH_EACH_S = 2.0
# Images under way in each replica, on average, above which there should be another one: a batch
# that is computed, and one that waits.
_IMAGES_PER_REPLICA = 32
# The front admits `waiting` images; the rest leaves room for questions about the state.
_MORE_CALLS = 32


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Lifeline:
    """An actor that lives as long as the process that created it, however that ends."""

    async def hold(self) -> None:
        await asyncio.Event().wait()


class _Model(TaggingModel):
    """A replica. The first that notices that the service's command has ended ends the service."""

    def __init__(self, lifeline: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        threading.Thread(target=_shut_down_after, args=(lifeline,), daemon=True).start()


def _shut_down_after(lifeline: Any) -> None:
    """Shut Ray Serve down with the process that started it, which it would outlive."""
    try:
        ray.get(lifeline.hold.remote())
    except RayActorError:
        serve.shutdown()


def application(
    folders: dict[str, Path],
    cache: Path,
    replicas: tuple[int, int],
    cpus: int,
    gpus: float,
    limits: Limits,
    lifeline: Any,
) -> serve.Application:
    """The application for Ray Serve: the models, whose HTTP front runs elsewhere.

    `replicas`: how many there are at least and at most; Ray Serve starts more while many images
    wait. `cpus` and `gpus` are what each gets. The application ends with `lifeline`, an actor
    `Lifeline`.
    """
    least, most = replicas
    scale: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scale = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": _IMAGES_PER_REPLICA,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            }
        }
    waiting = limits.waiting + _MORE_CALLS
    deployment = serve.deployment(
        name=MODEL,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=waiting,
        health_check_period_s=_CHECK_HEALTH_EACH_S,
        **scale,
        **_SHUTDOWN,
    )(_Model)
    return deployment.bind(lifeline, folders, cache, limits.pixels, waiting, gpus, cpus)
