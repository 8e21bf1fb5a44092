"""CLIP's prompt templates as captions: the baseline without a language model's sentences."""

from __future__ import annotations

from collections.abc import Iterator

from prompt_tuning.captions import Caption
from prompt_tuning.categories import CategoryList


def template_captions(categories: CategoryList) -> Iterator[Caption]:
    """CLIP's 80 ImageNet templates filled with each category's name, which is their only label.

    Radford et al., 2021, arXiv 2103.00020, §3.1.4; the list is open_clip's.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    for label, name in enumerate(categories.names):
        for template in OPENAI_IMAGENET_TEMPLATES:
            yield Caption(template(name), (label,), "template")
