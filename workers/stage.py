"""Stages: steps whose result is a folder named by the hash of all that it depends on.

Resuming, sharing between runs and "same config, same bytes" are this one mechanism.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_tuning.code_digest import code_digest
from prompt_tuning.storage import canonical_json, digest, is_published, publishing

_TIMING = "timing.json"


@dataclass(frozen=True)
class Stage:
    """One step: `folder` holds its result once it is done, `parts` its unfinished work."""

    name: str
    key: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / self.name / self.key

    @property
    def parts(self) -> Path:
        return self.cache / "parts" / f"{self.name}-{self.key}"

    def done(self) -> bool:
        """Whether the result is there, whole and unaltered."""
        return is_published(self.folder)

    def seconds(self) -> float:
        """How long the finished stage took when it ran."""
        return float(json.loads((self.folder / _TIMING).read_bytes())["seconds"])


def plan_stage(
    cache: Path, name: str, entry: str, inputs: tuple[Stage, ...] = (), **settings: Any
) -> Stage:
    """A stage whose key hashes its settings, its code and its inputs' keys.

    `entry`: the module whose function fills the stage's folder.
    """
    key = digest(
        {
            "settings": settings,
            "source": code_digest(entry),
            "inputs": [stage.key for stage in inputs],
        }
    )
    return Stage(name, key[:20], cache)


def run_stage(stage: Stage, work: Callable[[Path], None]) -> bool:
    """Fill the stage's folder by `work` unless it is done; return whether `work` ran.

    Several drivers may do so at once: the first result stays, even if the work of others fails.
    """
    if stage.done():
        return False
    started = time.monotonic()
    try:
        with publishing(stage.folder) as staging:
            work(staging)
            seconds = round(time.monotonic() - started, 1)
            (staging / _TIMING).write_text(canonical_json({"seconds": seconds}), "utf-8")
    except Exception:
        # The driver that finished the stage meanwhile has removed the parts of both.
        if not stage.done():
            raise
    shutil.rmtree(stage.parts, ignore_errors=True)
    return True
