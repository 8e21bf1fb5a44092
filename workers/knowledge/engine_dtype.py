"""The dtype of a language model: the one that the nodes of the engines support natively."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]

# CPU flags for bfloat16 instructions: Intel and AMD, then ARM. Emulated bfloat16 is five times
# slower than float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_BF16_CAPABILITY = (8, 0)
_CPUINFO = Path("/proc/cpuinfo")


def native_dtype(on_gpu: bool) -> Dtype:
    """The smallest dtype that this node's CPU, or each of its GPUs, supports natively.

    A GPU whose capability is unknown counts as one with bfloat16; vLLM refuses it if it has none.
    """
    if on_gpu:
        return "bfloat16" if min(_capabilities(), default=(9, 0)) >= _BF16_CAPABILITY else "float16"
    return "bfloat16" if _cpu_flags() & _BF16_FLAGS else "float32"


def common_dtype(dtypes: Iterable[Dtype]) -> Dtype:
    """The dtype that all nodes support, so that answers do not depend on the node."""
    return min(dtypes, key=("float32", "float16", "bfloat16").index)


def _cpu_flags() -> set[str]:
    """The CPU flags that Linux reports; empty on other systems."""
    try:
        text = _CPUINFO.read_text("utf-8")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of this machine's GPUs; empty if nvidia-smi fails.

    torch would not do: it sees no GPUs in a Ray task without one.
    """
    text = "\n".join(query_gpus("compute_cap"))
    return [(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d+)", text, re.M)]


def query_gpus(field: str, gpus: str = "") -> list[str]:
    """A field of each of this machine's GPUs, as nvidia-smi prints it; empty if that fails.

    `gpus`: only of these, by index or UUID, with commas.
    """
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    if gpus:
        query.append(f"--id={gpus}")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
