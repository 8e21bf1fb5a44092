"""In which numbers a language model computes: those that the engines' own nodes are fast in."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16", "float16"]

# Instructions that multiply in bfloat16: of Intel and AMD, then of ARM. Without them it is
# emulated, which takes five times as long as float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_BF16_CAPABILITY = (8, 0)
_CPUINFO = Path("/proc/cpuinfo")


def native_dtype(on_gpu: bool) -> Dtype:
    """The smallest type of number in which this node's CPU, or each of its GPUs, is fast.

    A GPU that cannot be asked counts as one that knows bfloat16: vLLM refuses it if it does not.
    """
    if on_gpu:
        return "bfloat16" if min(_capabilities(), default=(9, 0)) >= _BF16_CAPABILITY else "float16"
    return "bfloat16" if _cpu_flags() & _BF16_FLAGS else "float32"


def common_dtype(dtypes: Iterable[Dtype]) -> Dtype:
    """What suits all nodes, given what suits each: answers are the same wherever they are given."""
    return min(dtypes, key=("float32", "float16", "bfloat16").index)


def cluster_dtype(needs: dict[str, float], on_gpu: bool) -> Dtype:
    """Ask each node of the cluster on which an engine with these needs may be.

    `needs`: by Ray's names.

    Raises:
        DescribedFailure: when a node gives no answer.
        ray.exceptions.RayError: when a node goes away meanwhile.
    """
    import ray

    from workers.cluster_probe import ask_nodes

    nodes = [
        node
        for node in ray.nodes()
        if node["Alive"]
        and all(node["Resources"].get(name, 0) >= need for name, need in needs.items())
    ]
    return common_dtype(ask_nodes(nodes, _native_dtype_of, on_gpu))


def _native_dtype_of(node: dict[str, Any], on_gpu: bool) -> Dtype:
    """Runs on that node."""
    return native_dtype(on_gpu)


def _cpu_flags() -> set[str]:
    """What Linux says that the CPU can do; nothing where there is no Linux."""
    try:
        told = _CPUINFO.read_text("utf-8")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", told, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of this machine's GPUs; none where they cannot be asked.

    Not by torch: a Ray task that has no GPU sees none.
    """
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d+)", told, re.M)]
