"""`datafree evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import ConfigCache, Split


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, e.g. runs/quickstart")],
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set: folder, coco_json, voc_xml, voc2007 … (default: the run's)"),
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data set")] = None,
    split: Split = None,
    difficult: Annotated[
        str | None,
        typer.Option(help="How to count VOC's difficult objects: ignore, negative or positive"),
    ] = None,
    crowd: Annotated[
        bool | None, typer.Option("--crowd/--no-crowd", help="Count COCO's crowd regions or not")
    ] = None,
    scenes_seed: Annotated[int | None, typer.Option(help="Compose new scenes from a seed")] = None,
    scenes_images: Annotated[int | None, typer.Option(help="Number of scenes to compose")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of another run to compare on the same images")
    ] = None,
    artifact: Annotated[
        Path | None,
        typer.Option(help="Also measure this artifact, which `adapt` made from the run's"),
    ] = None,
    cache: ConfigCache = None,
) -> None:
    """Measure a finished run and its untuned baselines on labelled images."""
    from orchestrator.evaluate.job import evaluate as evaluate_run

    options = {
        "dataset": dataset,
        "root": root,
        "split": split,
        "difficult": difficult,
        "crowd": crowd,
        "scenes_seed": scenes_seed,
        "scenes_images": scenes_images,
    }
    evaluate_run(run, options, against, artifact, cache, Console())
