"""`datafree adapt`: learn from labelled photos, say what was gained, save a new artifact."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from orchestrator.cluster.resources import local_node
from orchestrator.console import StageProgress
from orchestrator.errors import as_input_error
from orchestrator.tagging.calibrate import check_new, read_labelled
from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.tagging.adaptation import adapt
from prompt_tuning.tagging.artifact import Artifact


def adapt_artifact(
    folder: Path, out: Path, labelled: dict[str, str], *, cache: Path, console: Console
) -> None:
    """Save a copy of an artifact that has learned from labelled photos.

    `labelled`: fields of `DatasetSettings`. Raises InputError for a mistake in the arguments.
    """
    check_new(out)
    with as_input_error():
        artifact = Artifact.load(folder)
    images = read_labelled(labelled, artifact.categories)
    if images.other_classes:
        console.print(images.describe_other_classes(), soft_wrap=True, markup=False)
    with as_input_error():
        fetch_weights(artifact.vlm_settings)
        vlm = load_vlm(artifact.vlm_settings, cache=cache)
    with StageProgress(console, "encoding", len(images.files)) as progress, as_input_error():
        adapted = adapt(
            artifact,
            vlm,
            images,
            threads=local_node().cpus,
            on_image=lambda: progress.advance(1),
        )
    for line in (*adapted.problems, *adapted.lines):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    adapted.artifact.save(out)
    console.print(str(out), soft_wrap=True, highlight=False, markup=False)
