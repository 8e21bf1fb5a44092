"""The captions that no language model writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.captions import Caption, CaptionSettings, read_caption_file
from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.template_captions import template_captions


def given_captions(settings: CaptionSettings, categories: CategoryList) -> Iterator[Caption]:
    """A person's own captions, file by file, then those of templates.

    Raises:
        OSError, ValueError: as `read_caption_file` does.
    """
    for file in settings.files:
        yield from read_caption_file(Path(file), categories)
    if settings.templates:
        yield from template_captions(categories)
