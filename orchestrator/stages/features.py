"""The stages that encode captions and labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.features import FEATURES
from prompt_tuning.parquet_rows import count_rows
from workers.features import encode_captions, encode_images

if TYPE_CHECKING:
    from orchestrator.console import StageProgress
    from orchestrator.plan.run import ImagesPlan, Plan

# Starts a progress bar, given the name and the number of items.
StartProgress = Callable[[str, int], "StageProgress"]


def write_caption_features(plan: Plan, start_progress: StartProgress, staging: Path) -> None:
    """Encode all captions once, in Ray tasks."""
    captions = plan.knowledge.captions_file
    with start_progress("caption features", count_rows(captions)) as progress:
        encode_captions(
            captions,
            plan.config.vlm,
            plan.cache,
            plan.captions.parts,
            staging / FEATURES,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )


def write_image_features(
    plan: ImagesPlan, files: Sequence[Path], start_progress: StartProgress, staging: Path
) -> None:
    """Encode these images once, in Ray tasks."""
    assert plan.features is not None
    with start_progress("image features", len(files)) as progress:
        encode_images(
            files,
            plan.vlm,
            plan.cache,
            plan.features.parts,
            staging / FEATURES,
            progress.advance,
            gpus=1 if plan.resources.gpus else 0,
        )
