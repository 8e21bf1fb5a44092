"""`datafree export`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import typer

from orchestrator.console import quieten_libraries
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def export(artifact: Path, onnx: Path | None, hf: Path | None, cache: str | None) -> None:
    """Check what is asked, then write it."""
    if onnx is None and hf is None:
        raise InputError("name what to write: --onnx FILE, --hf FOLDER or both")
    for option, target in (("--onnx", onnx), ("--hf", hf)):
        if target and artifact.resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(f"{option}: {target} lies in the artifact, which it would alter")
    if onnx and onnx.is_dir():
        raise InputError(f"--onnx: {onnx} is a folder; name a file, such as {onnx / 'model.onnx'}")
    say_if_stopped("Stopped. The same command starts again.")
    quieten_libraries()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it cannot simplify
    from prompt_tuning.tagging.artifact import Artifact

    try:
        loaded = Artifact.load(artifact)
        if onnx:
            from prompt_tuning.backbones.base import fetch_weights, load_vlm
            from prompt_tuning.tagging.onnx_export import check_packages, export_onnx

            check_packages()
            fetch_weights(loaded.vlm_settings)
            folder = check_folder(cache or os.environ.get("DATAFREE_CACHE") or "cache", "--cache")
            export_onnx(loaded, load_vlm(loaded.vlm_settings, cache=folder), onnx)
            typer.echo(f"{onnx}: {onnx.stat().st_size / 1e6:.0f} MB, from pixels to scores")
        if hf:
            from orchestrator.runs.model_card import export_folder

            export_folder(artifact, loaded, hf)
            typer.echo(f"{hf}: the artifact with its model card")
    except ValueError as error:
        raise InputError(str(error)) from None
