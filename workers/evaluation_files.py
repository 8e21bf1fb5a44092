"""The files of the evaluation stage."""

from __future__ import annotations

import json
from pathlib import Path

from prompt_tuning.evaluation.selection import Selection

METRICS = "metrics.json"
CLASS_FEATURES = "class_features.safetensors"
EXAMPLES = "examples.json"
IDENTITY = "vlm_identity.json"
GEOMETRY = "geometry.json"
SELECTION = "selection.json"
CALIBRATION = "calibration.json"
EXPLANATIONS = "explanations.json"


def read_selection(file: Path) -> tuple[int, Selection]:
    """Read which seed became the artifact, and what it was selected on."""
    selection = json.loads(file.read_bytes())
    chosen = selection.pop("artifact_seed")
    return chosen, Selection(**{**selection, "selecting": tuple(selection["selecting"])})
