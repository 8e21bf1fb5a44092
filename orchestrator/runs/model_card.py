"""Export an artifact as a folder for a model hub: its files and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import InputError
from orchestrator.pages.html import between, fixed
from orchestrator.pages.metrics_summary import METHODS, caption_notes, evaluated_on
from prompt_tuning.evaluation.method_scores import SCORE_KINDS
from prompt_tuning.storage import find_damage, publishing
from prompt_tuning.tagging.artifact import FILES, Artifact, holds_something_else
from workers.evaluation_files import SELECTION, read_selection

_CARD = "README.md"
# Hubs add this file to every repository. The manifest lists it, so it does not count as a change.
_ATTRIBUTES = ".gitattributes"
_LARGE_FILES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def export_folder(source: Path, artifact: Artifact, target: Path) -> None:
    """Write the files of the artifact in `source` and a card to `target`, which loads the same.

    Raises InputError if `target` has other files or an edited card, or if the run is damaged.
    """
    if holds_something_else(target):
        raise InputError(f"--hf: {target} exists and is not an export; name a new folder")
    if (target / _CARD).exists() and find_damage(target, (_CARD,)):
        raise InputError(f"--hf: {target / _CARD} was edited; move it away, or name a new folder")
    card = model_card(artifact, source.resolve().parent)
    with publishing(target, replace=True) as staging:
        for name in FILES:
            shutil.copyfile(source / name, staging / name)
        (staging / _CARD).write_text(card, "utf-8")
        (staging / _ATTRIBUTES).write_text(_LARGE_FILES, "utf-8")


def model_card(artifact: Artifact, run: Path) -> str:
    """The card in Markdown. `run`: the folder that the artifact is in, of a run or not.

    Raises InputError if the run's config or metrics cannot be read.
    """
    config, name = None, "datafree prompts"
    file = run / "config.yaml"
    if file.is_file() and (run / "metrics.json").is_file():
        config, name = validate(RunConfig, read_yaml(file), str(file)), run.name
    parts = [
        _FRONT_MATTER,
        f"# {name}: tags for images, tuned on text alone"
        + (", adapted to labelled images" if artifact.learned else ""),
        f"Scores {len(artifact.categories)} labels in images, each by itself, with the "
        f"{artifact.vlm.kind} image–text model `{artifact.vlm.model}` at "
        f"{artifact.vlm.resolution} pixels{_tiles(artifact)}. The prompts of the labels were tuned "
        "on sentences, as in [arXiv 2403.01209](https://arxiv.org/abs/2403.01209).",
        *([_NOT_CLIP] if artifact.vlm.kind == "embedded" else []),
        "## Use",
        _USE,
        *_local_checkpoint(artifact),
        "## Labels",
        _fenced("\n".join(artifact.categories.names)),
        "## Data",
        "The prompts were **tuned without a photo and without a label of one**, on sentences; "
        f"the scores' calibration and thresholds come from {artifact.calibration.source}.",
        *_learned(artifact),
        _sentences(config) if config else "Which sentences: not recorded with the artifact.",
        "## Figures",
        _figures(run) if config else "**Not measured**: the artifact is not in a run's folder.",
        "## Licence",
        _licence(config),
    ]
    return "\n\n".join(parts) + "\n"


_FRONT_MATTER = """---
license: other
license_name: to-be-chosen-by-who-publishes
library_name: datafree
pipeline_tag: image-classification
tags:
- image-tagging
- multi-label-image-classification
- prompt-tuning
- text-only-training
- arxiv:2403.01209
---"""

_NOT_CLIP = (
    "> The embedded model **is not CLIP**: an EfficientNet-Lite that saw ImageNet's labels, put "
    "into the text space of MiniLM through the names of ImageNet's classes. Figures here are "
    "figures of that model."
)

_USE = """```python
from prompt_tuning import Tagger

print(Tagger.load("this-folder").tag(["photo.jpg"]))
```

The weights of the image–text model are not in this folder; its exact identity is in
`artifact.json`, and another model is refused."""


def _tiles(artifact: Artifact) -> str:
    cuts = [f"{n} × {n}" for n in artifact.vlm_settings.tiles]
    return f", with {' and '.join(cuts)} tiles of each image" if cuts else ""


def _learned(artifact: Artifact) -> list[str]:
    learned = artifact.learned
    if not learned:
        return []
    changed = (
        "Its class features, scores and thresholds"
        if learned.moved
        else "Its scores and thresholds"
    )
    return [
        f"{changed} then **learned from {len(learned.images)} labelled images** "
        f"(`datafree {learned.by}`, starting from the artifact of version `{learned.parent}`; "
        "SHA-256 of the images in `artifact.json`). Figures below are of the artifact before that, "
        "if there are any. " + " ".join(learned.figures)
    ]


def _local_checkpoint(artifact: Artifact) -> list[str]:
    file = Path(artifact.vlm_settings.pretrained or "")
    if not file.is_absolute():
        return []
    return [
        f"They are a local checkpoint, `{file.name}` (SHA-256 `{artifact.vlm.weights}`). `Tagger` "
        "loads it from the path `vlm_settings.pretrained` in `artifact.json`. On another machine, "
        "put it there, or load it with `load_vlm` and give it to `Tagger` with the `Artifact`."
    ]


def _licence(config: RunConfig | None) -> str:
    writer = ""
    if config is None:
        writer = "the language model that wrote the sentences, if one did, and of "
    elif config.knowledge.questions.asks_something:
        writer = "the language model that wrote the sentences and of "
    return (
        "This folder holds the tuned prompts only. Who publishes it chooses their licence (the two "
        f"`license` lines above), within the terms of {writer}the image–text model, whose text "
        "tower made the class features."
    )


def _sentences(config: RunConfig) -> str:
    sources = []
    if config.knowledge.questions.asks_something:
        sources.append(f"written by the language model `{config.knowledge.llm.model}`")
    if config.captions.templates:
        sources.append("CLIP's 80 templates, filled in with the labels")
    if config.captions.files:
        names = ", ".join(f"`{Path(file).name}`" for file in config.captions.files)
        sources.append(f"given by the owner of the run ({names})")
    return f"The sentences were {'; and '.join(sources)}."


def _figures(run: Path) -> str:
    """The run's figures as a table of methods, then the protocol."""
    try:
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_bytes())
        selected = read_selection(run / SELECTION)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: its figures cannot be read: {error}") from None
    images, notes = metrics["images"] > 0, caption_notes(metrics)
    chance = f"chance {fixed(metrics['chance_map'])}"
    return "\n\n".join(
        [
            *([_fenced("\n".join(notes))] if notes else []),
            f"mAP on {evaluated_on(metrics if images else None)}, {chance}"
            + ("." if images else "; such figures promise little for photos."),
            _table(
                ["method", *SCORE_KINDS, "fused, 95 %"],
                [
                    [
                        f"`{method}`",
                        *(fixed(metrics["map"][method][branch]) for branch in SCORE_KINDS),
                        between(metrics["ci"].get(method)),
                    ]
                    for method in METHODS
                ],
            ),
            *metrics.get("notes", []),
            "`tuned` is the mean over the seeds; this artifact is that of seed "
            f"{selected}, chosen by {metrics['protocol']['selected_on']}. The other methods are "
            "untuned: one prompt, CLIP's 80 templates, the mean over synonyms and kinds, the mean "
            "over the very sentences that tuning sees.",
            "Protocol:",
            "\n".join(
                f"- {field.replace('_', ' ')}: {value}"
                for field, value in metrics["protocol"].items()
            ),
        ]
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str) -> str:
    """A code block, whatever Markdown the text contains."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
