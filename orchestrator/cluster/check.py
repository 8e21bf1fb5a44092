"""Check that the nodes of a cluster can work together, before anything long begins."""

from __future__ import annotations

import os
import platform
import uuid
from typing import TYPE_CHECKING

from orchestrator.config.models import Paths
from orchestrator.errors import InputError
from orchestrator.paths import check_folder

if TYPE_CHECKING:
    from workers.cluster_probe import NodeReport


def check_cluster(paths: Paths) -> None:
    """Raise InputError if a node at RAY_ADDRESS has other versions, or does not share a folder."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    import ray

    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    from workers.cluster_probe import probe_nodes

    folders = {
        "paths.cache": check_folder(paths.cache, "paths.cache"),
        "paths.runs": check_folder(paths.runs, "paths.runs"),
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for report in probe_nodes(folders, uuid.uuid4().hex):
        _check_node(report, {name: str(folder) for name, folder in folders.items()})


def _check_node(report: NodeReport, folders: dict[str, str]) -> None:
    import ray

    from workers.cluster_probe import package_versions

    here = package_versions()
    for what, theirs, ours in (
        ("Python", _minor(report.python), _minor(platform.python_version())),
        ("Ray", report.ray, ray.__version__),
        *((package, report.packages[package], here[package]) for package in here),
    ):
        if theirs != ours:
            raise InputError(
                f"node {report.address}: has {what} {theirs}, but the driver's node has {ours}; "
                "install the same on every node"
            )
    for name, why in report.unshared_folders.items():
        raise InputError(
            f"{name}: node {report.address} does not share {folders[name]}: {why}; put it on a "
            "file system that every node mounts at this path"
        )


def _minor(version: str) -> str:
    """3.11 of 3.11.4. Ray can pass objects between 3.11.4 and 3.11.9, not between 3.11 and 3.12."""
    return ".".join(version.split(".")[:2])
