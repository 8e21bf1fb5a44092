"""Checks of each node of a cluster: its versions, and whether it shares the folders."""

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

_READABLE_WITHIN_S = 10.0  # NFS clients refresh a folder only every few seconds
_ANSWERS_WITHIN_S = 120.0  # a node may have to start a worker
_PACKAGES = ("torch", "transformers")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class NodeReport:
    """A node's versions. `unshared_folders`: why it does not share folders, by name."""

    address: str
    python: str
    ray: str
    packages: dict[str, str]
    unshared_folders: dict[str, str]


def probe_nodes(folders: dict[str, Path], token: str) -> list[NodeReport]:
    """Probe every node but this one.

    This node writes a marker into each folder. The others read it and write one of their own, which
    this node reads.

    `folders`: existing folders by name. `token`: identifies the markers of this probe.

    Raises:
        OSError: if this node cannot write to a folder.
        DescribedFailure, ray.exceptions.RayError: as `ask_nodes`.
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
                    reason = f"what it writes there is not seen on this node ({why})"
                    report.unshared_folders[name] = reason
        return reports
    finally:
        for marker in markers.values():
            for file in marker.glob("*"):
                file.unlink(missing_ok=True)
            shutil.rmtree(marker, ignore_errors=True)  # NFS may keep a file for a while


def ask_nodes(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Answer], *arguments: object
) -> list[Answer]:
    """Call `function(node, *arguments)` on each of these nodes (entries of `ray.nodes()`).

    Raises:
        DescribedFailure: if a node does not answer.
        ray.exceptions.RayError: if a node goes away in the meantime.
    """
    ask: Any = ray.remote(num_cpus=0)(function)
    asked = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(node, *arguments)
        for node in nodes
    ]
    _, silent = ray.wait(asked, num_returns=len(asked), timeout=_ANSWERS_WITHIN_S)
    for node, answer in zip(nodes, asked, strict=True):
        if answer in silent:
            raise DescribedFailure(
                f"node {node['NodeManagerAddress']}: no answer within {_ANSWERS_WITHIN_S:.0f} s; "
                "it may be overloaded, or unable to start a Ray worker"
            )
    answers: list[Answer] = ray.get(asked)
    return answers


def _look(node: dict[str, Any], markers: dict[str, Path], asker: str, token: str) -> NodeReport:
    """Runs on `node`; `asker` is the id of the driver's node."""
    unshared = {}
    for name, marker in markers.items():
        if why := _unread(marker / asker, token):
            unshared[name] = f"what the driver's node has written there is not seen ({why})"
            continue
        try:
            (marker / node["NodeID"]).write_text(token)
        except OSError as error:
            unshared[name] = f"it cannot be written to ({error.strerror})"
    return NodeReport(
        node["NodeManagerAddress"],
        platform.python_version(),
        ray.__version__,
        package_versions(),
        unshared,
    )


def package_versions() -> dict[str, str]:
    """The versions here of packages that can change results; `none` if not installed."""
    found = {}
    for package in _PACKAGES:
        try:
            # Without the build (+cpu, +cu128): CPU and GPU nodes may differ in it.
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _unread(marker: Path, token: str) -> str:
    """Why a marker is still not readable after some seconds; empty if it is."""
    end = time.monotonic() + _READABLE_WITHIN_S
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
