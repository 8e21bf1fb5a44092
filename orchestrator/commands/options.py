"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prompt_tuning.tagging.starter import artifact_folder

Config = Annotated[Path, typer.Argument(help="Config file of the run (YAML)")]
Artifact = Annotated[
    Path,
    typer.Argument(
        help="Artifact folder, e.g. runs/quickstart/artifact; `starter` is the packaged one",
        callback=artifact_folder,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field of the config, e.g. tuning.epochs=5; can be repeated",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing")]
Cache = Annotated[str | None, typer.Option(help="Cache folder (default: $DATAFREE_CACHE or cache)")]
ConfigCache = Annotated[
    str | None, typer.Option(help="Cache folder (default: $DATAFREE_CACHE or paths.cache)")
]
Runs = Annotated[
    str | None, typer.Option(help="Folder for runs (default: $DATAFREE_RUNS or paths.runs)")
]
Split = Annotated[str | None, typer.Option(help="Split of the data set, e.g. val")]
TagFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="label_studio, cvat, coco_json, fiftyone, datumaro or yolo; xmp: photos' sidecars",
    ),
]
Sidecars = Annotated[
    str | None,
    typer.Option(
        metavar="STYLE",
        help="With xmp: darktable (a.jpg.xmp) or adobe (a.xmp; default: the one that exists)",
    ),
]
DrySidecars = Annotated[
    bool, typer.Option("--dry-run", help="With xmp: print what would change and write nothing")
]
