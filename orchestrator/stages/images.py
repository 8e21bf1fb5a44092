"""The stage of labelled images: it lists photos, which stay in their folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from prompt_tuning.datasets.labelled_images import LabelledImages, readable
from prompt_tuning.datasets.registry import PHOTOS, read_photos, stored_images
from prompt_tuning.storage import canonical_json

if TYPE_CHECKING:
    from orchestrator.plan.run import ImagesPlan

UNREADABLE = "unreadable.json"
_UNREADABLE_SHOWN = 10
_log = logging.getLogger(__name__)


def write_photos(plan: ImagesPlan, staging: Path) -> None:
    """List the labelled photos. It leaves unreadable ones out and writes the reasons to a file."""
    assert plan.images is not None
    try:
        photos, unreadable = readable(read_photos(plan.settings, plan.categories))
    except (ValueError, OSError) as error:
        raise InputError(f"evaluation.root: {error}") from None
    photos.save(staging / PHOTOS)
    reasons = {str(file): reason for file, reason in unreadable.items()}
    (staging / UNREADABLE).write_text(canonical_json(reasons), "utf-8")
    if unreadable:
        _log.warning(
            "%d of %d images cannot be read and are left out (all are in %s):\n%s",
            len(unreadable),
            len(unreadable) + len(photos.files),
            plan.images.folder / UNREADABLE,
            "\n".join(list(reasons.values())[:_UNREADABLE_SHOWN]),
        )


def read_images(plan: ImagesPlan) -> LabelledImages:
    """The labelled images of the plan: listed photos or composed scenes."""
    assert plan.images is not None
    return stored_images(plan.settings.dataset, plan.images.folder, plan.categories)
