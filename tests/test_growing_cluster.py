"""A cluster with Ray's autoscaler, which starts nodes on this machine when they are needed."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from command_line import run_datafree
from ray._private.services import get_node_ip_address
from ray.cluster_utils import Cluster
from tiny_artifact import NAMES, SENTENCES

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources
from workers import waiting
from workers.autoscaler import adds_nodes

# The provider knows its head by this.
HEAD = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def described(version: int, gcs: str) -> dict[str, Any]:
    """The autoscaler's config: a head with a CPU, and a node with two that may come."""
    kinds = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "large": {
            "resources": {"CPU": 2, "large": 1},
            "labels": {"tier": "gold"},
            "node_config": {},
            "max_workers": 1,
        },
    }
    return {
        "cluster_name": "growing",
        "max_workers": 1,
        "provider": {
            **(
                {"type": "external", "module": PROVIDER}
                if version == 2
                else {"type": "fake_multinode"}
            ),
            "head_node_id": HEAD,
            "gcs_address": gcs,
            "launch_multiple": True,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        # Ray fills these in from a file that its package lacks.
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{
            name: []
            for name in (
                *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
                *("initialization_commands", "setup_commands", "head_setup_commands"),
                *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
            )
        },
        "file_mounts_sync_continuously": False,
    }


@contextmanager
def growing(folder: Path, version: int) -> Iterator[Cluster]:
    """A cluster of a head alone, with version 1 or 2 of Ray's autoscaler."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(described(version, f"{get_node_ip_address()}:{port}")), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        patch.setenv("RAY_FAKE_CLUSTER", "1")
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        patch.setenv("RAY_CLOUD_INSTANCE_ID", HEAD)
        if version == 2:
            patch.setenv("RAY_enable_autoscaler_v2", "1")
        head = {
            "num_cpus": 1,
            "gcs_server_port": port,
            "autoscaling_config": str(config),
        }
        patch.setenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING", HEAD)
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.delenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
        patch.setenv("RAY_ADDRESS", cluster.address)
        assert cluster.head_node
        monitor = psutil.Process(cluster.head_node.all_processes["monitor"][0].process.pid)
        try:
            yield cluster
        finally:
            started = monitor.children(recursive=True)
            disconnect()
            cluster.shutdown()
            for process in started:
                if process.is_running():
                    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "chosen"),
    [
        (1, {"pool": "large"}),
        # Only version 2 looks at labels.
        (2, {"node_labels": {"tier": "gold"}, "workers": 2}),
    ],
)
def test_a_run_waits_for_the_node_that_it_needs_and_tunes_there(
    tmp_path: Path,
    new_cache: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    version: int,
    chosen: dict[str, Any],
) -> None:
    monkeypatch.setattr(waiting, "_SECONDS_BETWEEN_REPORTS", 0.1)
    sentences = "\n".join(f"{text}\t{';'.join(names)}" for text, names in SENTENCES)
    (tmp_path / "sentences.tsv").write_text(sentences, "utf-8")
    config = {
        "name": "grown",
        "categories": NAMES,
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "captions": {"files": ["sentences.tsv"], "held_out": 0.3},
        "hierarchy": {"groups": "auto", "coarse": 2, "fine": 2},
        "vlm": {"model": "efficientnet-lite0+minilm", "resolution": 224},
        "tuning": {"epochs": 2, "batch": 32, "cpus_per_worker": 1, **chosen},
        "evaluation": {"dataset": "none"},
    }
    (tmp_path / "grown.yaml").write_text(yaml.safe_dump(config), "utf-8")
    folders = ("--cache", new_cache(tmp_path / "cache"), "--runs", tmp_path / "runs")
    with growing(tmp_path, version):
        connect()
        deadline = waiting.time.monotonic() + 60
        while not (found := find_resources()).may_grow:
            assert waiting.time.monotonic() < deadline, "no autoscaler reports itself"
        assert [node.cpus for node in found.nodes] == [1]
        wanted = "tuning.pool: no node" if "pool" in chosen else "tuning.node_labels: no node"
        arguments = ("run", tmp_path / "grown.yaml", *folders)
        planned = run_datafree(monkeypatch, capsys, *arguments, "--dry-run")
        assert planned.code == 2
        assert re.match(f"error: {wanted} .*; a run waits for one that the", planned.err)
        done = run_datafree(monkeypatch, capsys, *arguments)
        assert done.code == 0, done.err
        words = r"waiting for \d s: a node for tuning: each needs 1 CPU.*; gives up in 30 minutes$"
        assert re.match(words, caplog.messages[0])
        connect()
        [large] = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != HEAD]
        actors = ray._private.state.actors().values()
        workers = [actor for actor in actors if "RayTrainWorker" in actor["ActorClassName"]]
        assert [worker["Address"]["NodeID"] for worker in workers] == [large] * chosen.get(
            "workers", 1
        )


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        ({"10.0.0.1": "head", "10.0.0.2": "gpu"}, True),
        # Of nodes that were started by hand.
        ({"f00": "node_f00", "f01": "node_f01"}, False),
        ({}, False),
    ],
)
def test_an_autoscaler_that_only_mirrors_nodes_adds_none(
    types: dict[str, str], grows: bool
) -> None:
    assert adds_nodes({"autoscaler_report": {"node_type_mapping": types}}) == grows
    assert adds_nodes({"autoscalerReport": {"nodeTypeMapping": types}}) == grows
    assert not adds_nodes({"load_metrics_report": {}})
