"""Whether a GPU can hold a language model's weights, before they load."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from workers.knowledge.engine_dtype import Dtype, query_gpus

if TYPE_CHECKING:
    from workers.knowledge.llm_settings import LLMSettings

_GIB = 1024**3
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_gpu_memory(settings: LLMSettings, model: Path, dtype: Dtype) -> None:
    """Compare the weights' size with the memory that is free on this process's GPUs.

    Passes where either is not known: for a model that is not a local folder, for weights that vLLM
    quantizes when it loads them, or without nvidia-smi.

    Raises:
        ValueError: beginning with the field to change, if the weights do not fit.
    """
    weights = weights_gib(model, dtype)
    if weights is None or settings.quantization is not None:
        return
    memory = _memory_gib(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if not memory:
        return
    needed = weights / settings.tensor_parallel
    free, total = min(memory)
    usable = min(free, total * (settings.gpu_memory_share or 1.0))
    if needed > usable:
        raise ValueError(
            f"knowledge.llm.model: its weights need {needed:.1f} GiB of each GPU, and "
            f"{usable:.1f} of {total:.1f} GiB are free for it; use a smaller model, quantization, "
            "a larger tensor_parallel or gpu_memory_share"
        )


def weights_gib(model: Path, dtype: Dtype) -> float | None:
    """The memory of a checkpoint folder's weights in `dtype`; None if it cannot be known."""
    names = {file.name for file in model.glob("*.safetensors")}
    index = model / "model.safetensors.index.json"
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
        if index.is_file():  # without a second copy, such as consolidated.safetensors
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        files = sum((model / name).stat().st_size for name in names)
    except (OSError, ValueError, KeyError):
        return None
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    if not files:
        return None
    if "quantization_config" in config or stored not in _BYTES:
        return files / _GIB
    return files * _BYTES[dtype] / _BYTES[stored] / _GIB


def _memory_gib(gpus: str) -> list[tuple[float, float]]:
    """The free and total memory of each GPU."""
    lines = query_gpus("memory.free,memory.total", gpus)
    found = (re.findall(r"(\d+) MiB", line) for line in lines)
    return [(int(pair[0]) / 1024, int(pair[1]) / 1024) for pair in found if len(pair) == 2]
