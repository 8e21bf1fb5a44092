"""`export`: write an artifact as an ONNX file or as a folder for a model hub."""

from __future__ import annotations

import logging
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.paths import cache_folder
from orchestrator.runs.model_card import export_folder
from prompt_tuning.backbones import fetch_weights, load_vlm
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.onnx_export import check_packages, export_onnx


def export_artifact(folder: Path, onnx: Path | None, hf: Path | None, cache: str | None) -> None:
    """Write the artifact in `folder` to the file `onnx`, the folder `hf`, or both.

    Raises InputError.
    """
    if onnx is None and hf is None:
        raise InputError("name what to write: --onnx FILE, --hf FOLDER or both")
    for option, target in (("--onnx", onnx), ("--hf", hf)):
        if target and folder.resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(f"{option}: must be outside the artifact (got {target})")
    if onnx and onnx.is_dir():
        raise InputError(f"--onnx: {onnx} is a folder; name a file, such as {onnx / 'model.onnx'}")
    try:
        artifact = Artifact.load(folder)
        if onnx:
            check_packages()
            logging.getLogger("onnxscript").setLevel(logging.ERROR)  # lists what it cannot simplify
            fetch_weights(artifact.vlm_settings)
            vlm = load_vlm(artifact.vlm_settings, cache=cache_folder(cache))
            export_onnx(artifact, vlm, onnx)
            print(f"{onnx}: {onnx.stat().st_size / 1e6:.0f} MB, from pixels to scores")
        if hf:
            export_folder(folder, artifact, hf)
            print(f"{hf}: the artifact with its model card")
    except ValueError as error:
        raise InputError(str(error)) from None
