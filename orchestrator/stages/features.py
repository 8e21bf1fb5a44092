"""The stages that encode captions and labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from prompt_tuning.features import FEATURES, save_features
from workers.features import encode_in_tasks

if TYPE_CHECKING:
    from orchestrator.console import StageProgress
    from orchestrator.plan.run import ImagesPlan, Plan

# Starts a progress bar, given the name and the number of items.
StartProgress = Callable[[str, int], "StageProgress"]


def write_caption_features(plan: Plan, start_progress: StartProgress, staging: Path) -> None:
    """Encode all captions once, in Ray tasks."""
    texts = pq.read_table(plan.knowledge.captions_file, columns=["text"])["text"].to_pylist()
    with start_progress("caption features", len(texts)) as progress:
        features = encode_in_tasks(
            texts,
            plan.config.vlm,
            plan.cache,
            plan.captions.parts,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )
    save_features(staging / FEATURES, features)


def write_image_features(
    plan: ImagesPlan, files: Sequence[Path], start_progress: StartProgress, staging: Path
) -> None:
    """Encode these images once, in Ray tasks."""
    assert plan.features is not None
    with start_progress("image features", len(files)) as progress:
        features = encode_in_tasks(
            files,
            plan.vlm,
            plan.cache,
            plan.features.parts,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )
    save_features(staging / FEATURES, features)
