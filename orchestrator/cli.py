"""The command line: one small module a command, imported when it is called."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.interruption import interruptible

_LONGEST_MESSAGE = 1400

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tag images with new labels: prompts tuned on text alone.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"datafree {version('datafree')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None: ...


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="override, e.g. tuning.epochs=5"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan only")] = False,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
    runs: Annotated[str | None, typer.Option(help="folder of runs")] = None,
) -> None:
    """From a label list to tuned prompts and a report of how well they recognise images."""
    from orchestrator.commands.run import run as run_command

    run_command(config, set_ or [], dry_run, cache, runs)


@app.command()
def knowledge(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="override, e.g. knowledge.llm.engines=4"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan only")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit 1 when a question could not be answered")
    ] = False,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
    runs: Annotated[str | None, typer.Option(help="folder of runs")] = None,
) -> None:
    """Sentences about the categories and their labels, from a language model, as Parquet."""
    from orchestrator.commands.knowledge import knowledge as knowledge_command

    knowledge_command(config, set_ or [], dry_run, strict, cache, runs)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file of a run with a sweep part")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="override, e.g. sweep.samples=40"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan only")] = False,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
    runs: Annotated[str | None, typer.Option(help="folder of runs")] = None,
) -> None:
    """Which hierarchy and which losses are best for these labels: tune many, compare, report."""
    from orchestrator.commands.sweep import sweep as sweep_command

    sweep_command(config, set_ or [], dry_run, cache, runs)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="folder of a finished run, e.g. runs/quickstart")],
    dataset: Annotated[
        str | None,
        typer.Option(help="folder, coco_json, voc_xml, voc2007 … (default: the run's own)"),
    ] = None,
    root: Annotated[str | None, typer.Option(help="folder of the data set")] = None,
    split: Annotated[str | None, typer.Option(help="of a benchmark, e.g. val")] = None,
    difficult: Annotated[
        str | None, typer.Option(help="VOC's difficult objects: ignore, negative or positive")
    ] = None,
    crowd: Annotated[
        bool | None, typer.Option("--crowd/--no-crowd", help="whether COCO's crowd regions count")
    ] = None,
    scenes_seed: Annotated[int | None, typer.Option(help="compose fresh scenes from it")] = None,
    scenes_images: Annotated[int | None, typer.Option(help="how many scenes to compose")] = None,
    against: Annotated[
        Path | None, typer.Option(help="folder of another run to compare with, on the same images")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
) -> None:
    """A finished run's prompts and the untuned baselines on any labelled images."""
    from orchestrator.commands.evaluate import evaluate as evaluate_command

    options = {
        "dataset": dataset,
        "root": root,
        "split": split,
        "difficult": difficult,
        "crowd": crowd,
        "scenes_seed": scenes_seed,
        "scenes_images": scenes_images,
    }
    evaluate_command(run, options, against, cache)


@app.command()
def tag(
    artifact: Annotated[Path, typer.Argument(help="folder, e.g. runs/quickstart/artifact")],
    images: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="images, folders, or quoted patterns")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="tags.jsonl, .csv or .parquet (default: lines on the standard output)"),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="score of a tag, 0 to 1 (default: each label's own)")
    ] = None,
    top: Annotated[int | None, typer.Option(help="no more tags for an image than this")] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="these instead, without tuning")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="spread over so many workers on Ray")] = None,
    sheet: Annotated[Path | None, typer.Option(help="a page of images and tags, .html")] = None,
    cache: Annotated[str | None, typer.Option(help="folder of what models derive")] = None,
) -> None:
    """Tags for images: files, folders, any number; goes on where it was stopped."""
    from orchestrator.commands.tag import tag as tag_command

    tag_command(artifact, images, out, threshold, top, labels, workers, sheet, cache)


@app.command()
def calibrate(
    artifact: Annotated[Path, typer.Argument(help="folder, e.g. runs/quickstart/artifact")],
    out: Annotated[Path, typer.Option(help="folder of the new artifact")],
    photos: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH…]", help="photos without labels, as `tag` takes them"),
    ] = None,
    root: Annotated[str | None, typer.Option(help="folder of labelled photos instead")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="what --root is: folder (default), coco_json, voc_xml …")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of a benchmark, e.g. val")] = None,
    cache: Annotated[str | None, typer.Option(help="folder of what models derive")] = None,
) -> None:
    """Scores and thresholds that fit your photos: a handful with labels, or any without."""
    from orchestrator.commands.calibrate import calibrate as calibrate_command

    calibrate_command(artifact, photos or [], out, root, dataset, split, cache)


@app.command()
def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(metavar="ARTIFACT…", help="folders, e.g. runs/quickstart/artifact"),
    ],
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen at")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(help="that requests must bear (default: DATAFREE_TOKEN, not in `ps`)"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="models at once (default: one a GPU; without GPUs two)")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="folder of what models derive")] = None,
) -> None:
    """Tags over HTTP, and a page to try them in a browser; takes artifacts written anew."""
    from orchestrator.commands.serve import serve as serve_command

    serve_command(artifacts, host, port, token, replicas, cache)


@app.command()
def export(
    artifact: Annotated[Path, typer.Argument(help="folder, e.g. runs/quickstart/artifact")],
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="one ONNX file, from pixels to calibrated scores"),
    ] = None,
    hf: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="the artifact with a model card, for a hub"),
    ] = None,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
) -> None:
    """An artifact for other programs: as an ONNX file, or as a folder with a model card."""
    from orchestrator.commands.export import export as export_command

    export_command(artifact, onnx, hf, cache)


@app.command()
def submit(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG|status|logs|stop", help="YAML file, or what of a job")
    ],
    what: Annotated[
        str | None,
        typer.Argument(metavar="run|sweep|knowledge|JOB", help="default: run; or the job"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="of the job server (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
            "http://127.0.0.1:8265)",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="override, e.g. tuning.epochs=5"),
    ] = None,
    cache: Annotated[str | None, typer.Option(help="folder that every node sees")] = None,
    runs: Annotated[str | None, typer.Option(help="folder that every node sees")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="follow the job's log to its end")
    ] = True,
) -> None:
    """A config as a job of a Ray cluster; or a job's status or logs, or stop it."""
    from orchestrator.commands.submit import submit as submit_command

    submit_command(config, what, address, set_ or [], cache, runs, wait)


@app.command()
def doctor(
    verify_clip: Annotated[
        Path | None,
        typer.Option(
            "--verify-clip",
            metavar="DATASET_ROOT",
            help="instead, CLIP's zero-shot figure on VOC 2007 against the published one",
        ),
    ] = None,
    cache: Annotated[str | None, typer.Option(help="folder of stage results")] = None,
) -> None:
    """What is here and what is missing: cores, GPUs, versions, models, a writable cache."""
    from orchestrator.commands.doctor import doctor as doctor_command

    doctor_command(cache, verify_clip)


def _home_expanded(arguments: list[str]) -> list[str]:
    """With the home folder for `~` where a shell leaves it, as in --out=~/tags.csv and "~/a*.jpg".

    What is submitted means the cluster's home, and is expanded there.
    """
    if arguments[:1] == ["submit"]:
        return arguments
    home = os.path.expanduser("~")
    return [
        re.sub(r"^((?:[\w.-]+=)?)~(?=/|$)", lambda found: found[1] + home, argument)
        for argument in arguments
    ]


def main() -> None:
    """Entry point: exit code 2 for a person's mistake, 1 for a failure, root cause first."""
    with interruptible():
        try:
            app(_home_expanded(sys.argv[1:]))
        except Exception as error:
            from orchestrator.errors import InputError

            if isinstance(error, InputError):
                typer.echo(f"error: {str(error)[:_LONGEST_MESSAGE]}", err=True)
                sys.exit(2)
            from workers.failure import describe

            typer.echo(describe(error), err=True)
            sys.exit(1)
