"""The number of engines or of tuning workers, and the resources of each."""

from __future__ import annotations

from dataclasses import dataclass

# The pool only says where an actor runs, so each takes almost nothing of this custom resource.
_POOL_SHARE = 0.001


@dataclass(frozen=True)
class Placement:
    """`count` actors, the CPUs and GPUs of each, and the pool of their nodes (None: any node)."""

    count: int
    cpus: float
    gpus: float
    pool: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one actor, by Ray's names."""
        pool = {self.pool: _POOL_SHARE} if self.pool else {}
        return {"CPU": self.cpus, "GPU": self.gpus, **pool}
