"""`explain`: the captions that moved a label's class feature most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.errors import InputError, as_input_error
from prompt_tuning.categories import CategoryList
from prompt_tuning.tagging.artifact import Artifact
from workers.evaluation_files import EXPLANATIONS

_CAPTIONS_SHOWN = 8


def explain(artifact: Path, label: str, image: Path | None, cache: Path, console: Console) -> None:
    """Print the captions that moved a label most, or that matter most to its score of an image.

    Raises InputError for an unknown label, or where the run's file is missing.
    """
    with as_input_error():
        loaded = Artifact.load(artifact)
    place = loaded.categories.find(label)
    if place is None:
        raise InputError(f"{label!r} must be a label of {artifact}: {_names(loaded.categories)}")
    name = loaded.categories.names[place]
    file = artifact.resolve().parent / EXPLANATIONS
    try:
        captions = json.loads(file.read_bytes())["labels"][name]
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing: `datafree run` writes it beside its artifact"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged: remove it, and `datafree run` writes it") from None
    if not captions:
        text = f"No caption moved {name!r}: all were ranked right from the beginning."
        console.print(text, markup=False)
        return
    title = f"captions that moved {name!r} most"
    if image is not None:
        captions = _for_image(loaded, captions, image, cache)
        title = f"captions that speak most for {name!r} in {image.name}"
    table = Table("share", "caption", "labels", title=Text(title))
    for caption in captions[:_CAPTIONS_SHOWN]:
        share = f"{100 * caption['share']:.1f} %"
        table.add_row(share, Text(caption["text"]), Text(", ".join(caption["labels"])))
    console.print(table)


def _for_image(
    artifact: Artifact, captions: list[dict[str, Any]], image: Path, cache: Path
) -> list[dict[str, Any]]:
    """The captions by their part in the global score of an image: `pull · x·image`."""
    from prompt_tuning.backbones import load_vlm  # heavy
    from prompt_tuning.images import open_image

    try:
        vlm = load_vlm(artifact.vlm_settings, cache=cache)
        artifact.check_vlm(vlm)
        pixels = vlm.preprocess(open_image(image))[None]
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None
    seen = vlm.encode_image(pixels).pooled[0]
    texts = vlm.encode_captions([caption["text"] for caption in captions]).pooled
    parts = [
        caption["pull"] * cosine
        for caption, cosine in zip(captions, (texts @ seen).tolist(), strict=True)
    ]
    total = sum(abs(part) for part in parts) or 1.0
    order = sorted(range(len(parts)), key=lambda i: -parts[i])
    return [{**captions[i], "share": parts[i] / total} for i in order]


def _names(categories: CategoryList) -> str:
    names = categories.names
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
