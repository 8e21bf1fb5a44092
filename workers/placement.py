"""Which nodes engines and tuning workers may be on, how many there are, and what each gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from prompt_tuning.settings import Settings

# The pool only says where an actor runs, so each takes almost nothing of this custom resource.
_POOL_SHARE = 0.001
# n / (n / k) may come out just below k.
_ROUNDING = 1e-9

# As Ray has them, which follows Kubernetes.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_NAME}")
_CONDITION = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, condition in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} must be a label of Ray, such as ray.io/accelerator-type")
        if not _CONDITION.fullmatch(condition):
            raise ValueError(
                f"{key} must be a value, !value, in(value, value) or !in(value, value) "
                f"(got {condition!r})"
            )
    return labels


class NodeSettings(Settings):
    """`pool`, `node_labels`: the nodes that may run these processes. `pool` is a custom Ray
    resource of theirs, or a GPU model such as `accelerator_type:L4`. `node_labels` are Ray's labels
    that they must have, such as `{ray.io/accelerator-type: H100}`; a value may also be `!value`,
    `in(value, value)` or `!in(value, value)`. `wait_minutes`: how long to wait while no such node
    has room, since a lost node may come back and a cluster may grow."""

    pool: Annotated[str, Field(min_length=1)] | None = None
    node_labels: Annotated[dict[str, str], AfterValidator(_check_labels)] = {}
    wait_minutes: Annotated[float, Field(gt=0)] = 30


@dataclass(frozen=True)
class Placement:
    """`count` actors, the CPUs and GPUs of each, and their nodes.

    `pool`: the custom Ray resource of their nodes (None: any node). `node_labels`: conditions on
    their nodes' labels, as Ray's label selectors have them.
    """

    count: int
    cpus: float
    gpus: float
    pool: str | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one actor, by Ray's names."""
        pool = {self.pool: _POOL_SHARE} if self.pool else {}
        return {"CPU": self.cpus, "GPU": self.gpus, **pool}


def holds(has: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many actors with these needs fit at once on a node that `has` these resources."""
    fits = (int(has.get(name, 0) / n + _ROUNDING) for name, n in needs.items() if n)
    return min(fits, default=0)


def fits_labels(node: Mapping[str, Any], node_labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels meets the conditions of a label selector."""
    for key, condition in node_labels.items():
        values = condition.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
        named = node.get(key) in [value.strip() for value in values]
        if named == condition.startswith("!"):
            return False
    return True
