"""One heavy computation of a stage, in a Ray task, while the driver only waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from workers.waiting import Waiting

# A day: nothing else shows that a computation hangs, and one of a million captions takes hours.
_MINUTES = 24 * 60.0

T = TypeVar("T")


def in_task(
    subject: str, gpus: float, threads: int, function: Callable[..., T], *arguments: Any
) -> T:
    """What a function of a module returns for these arguments, in a task with `gpus`.

    `subject`: for messages, such as "evaluation". `threads`: of torch. The task reserves one CPU
    only, so that it finds room on a busy cluster.
    """
    task = _call.options(num_gpus=gpus).remote(threads, function, *arguments)
    waiting = Waiting(subject, {"CPU": 1, "GPU": gpus}, _MINUTES)
    result: T = ray.get(waiting.first([task]))
    return result


@ray.remote(num_cpus=1)
def _call(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(before)
