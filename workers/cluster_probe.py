"""What each node of a cluster is and sees: its versions, and whether it shares the folders."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.failure import DescribedFailure

# A client of NFS looks at a folder again after some seconds; a node may have to start a worker.
_PATIENCE = 10.0
_ANSWERS_WITHIN = 120.0
_PACKAGES = ("torch", "transformers")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class NodeReport:
    """A node's versions. `unshared_folders`: names of folders it does not share, and why."""

    address: str
    python: str
    ray: str
    packages: dict[str, str]
    unshared_folders: dict[str, str]


def probe_nodes(folders: dict[str, Path], token: str) -> list[NodeReport]:
    """Ask every node but this one. This one writes a marker into each folder, the others read it
    and write one back, which this one reads.

    `folders`: by name, on this node there already. `token`: names this probe's markers.

    Raises:
        OSError: when this node cannot write to a folder.
        DescribedFailure: when a node gives no answer.
        ray.exceptions.RayError: when a node goes away meanwhile.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    markers = {name: folder / f".probe-{token}" for name, folder in folders.items()}
    try:
        for marker in markers.values():
            marker.mkdir()
            (marker / here).write_text(token)
        reports = ask_nodes(others, _look, markers, here, token)
        for node, report in zip(others, reports, strict=True):
            for name in markers.keys() - report.unshared_folders.keys():
                if why := _unread(markers[name] / node["NodeID"], token):
                    report.unshared_folders[name] = (
                        f"what it writes there is not seen on this node ({why})"
                    )
        return reports
    finally:
        for marker in markers.values():
            _remove(marker)


def ask_nodes(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Answer], *arguments: object
) -> list[Answer]:
    """What a function returns on each of these nodes, which are as `ray.nodes` describes them.

    The node's description is the function's first argument.

    Raises:
        DescribedFailure: when a node gives no answer.
        ray.exceptions.RayError: when a node goes away meanwhile.
    """
    ask: Any = ray.remote(num_cpus=0)(function)
    asked = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(node, *arguments)
        for node in nodes
    ]
    _, silent = ray.wait(asked, num_returns=len(asked), timeout=_ANSWERS_WITHIN)
    for node, answer in zip(nodes, asked, strict=True):
        if answer in silent:
            raise DescribedFailure(
                f"node {node['NodeManagerAddress']}: no answer within {_ANSWERS_WITHIN:.0f} s; "
                "it may be overloaded, or unable to start a Ray worker"
            )
    answers: list[Answer] = ray.get(asked)
    return answers


def _look(node: dict[str, Any], markers: dict[str, Path], asker: str, token: str) -> NodeReport:
    """Runs on the node that is asked."""
    unshared = {}
    for name, marker in markers.items():
        if why := _unread(marker / asker, token):
            unshared[name] = f"what the driver's node has written there is not seen ({why})"
            continue
        try:
            (marker / node["NodeID"]).write_text(token)
        except OSError as error:
            unshared[name] = f"it cannot be written to ({error.strerror})"
    versions = package_versions()
    address = node["NodeManagerAddress"]
    return NodeReport(address, platform.python_version(), ray.__version__, versions, unshared)


def package_versions() -> dict[str, str]:
    """The packages here on which numbers depend; `none` where one is not installed."""
    found = {}
    for package in _PACKAGES:
        try:
            # A build for CPUs beside one for GPUs is no mismatch: nodes differ so.
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _unread(marker: Path, token: str) -> str:
    """Why a marker cannot be read, after some patience; empty when it can."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            list(marker.parent.iterdir())  # makes an NFS client look again
            if marker.read_text() == token:
                return ""
            why = "unfinished"
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() > end:
            return why
        time.sleep(0.1)


def _remove(marker: Path) -> None:
    for file in marker.glob("*"):
        file.unlink(missing_ok=True)
    shutil.rmtree(marker, ignore_errors=True)  # NFS may keep a file for a while
