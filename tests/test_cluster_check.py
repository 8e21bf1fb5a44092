"""A cluster's nodes are asked what they are and see, on real nodes; one cannot see a folder."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.cluster.check import _check_node, check_cluster
from orchestrator.cluster.resources import find_resources
from orchestrator.config.models import Paths
from orchestrator.errors import InputError
from workers import cluster_probe
from workers.cluster_probe import NodeReport, _unread, package_versions
from workers.failure import DescribedFailure
from workers.knowledge.engine_dtype import native_dtype
from workers.knowledge.pool import cluster_dtype
from workers.placement import Placement

# A mount that only the processes below see: the same path, another folder.
BLIND = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=0)
        cluster.add_node(num_cpus=1, resources={"training": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"))


@pytest.mark.usefixtures("cluster")
def test_nodes_that_share_the_folders_pass_and_nothing_is_left_there(paths: Paths) -> None:
    check_cluster(paths)
    assert list(Path(paths.cache).iterdir()) == []
    assert list(Path(paths.runs).iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_a_pool_is_a_custom_resource_that_a_node_advertises() -> None:
    pools = [node.pools for node in find_resources().nodes]
    assert sorted(pools, key=len) == [frozenset(), frozenset(), frozenset({"training"})]


@pytest.mark.usefixtures("cluster")
def test_nodes_that_engines_may_be_on_are_asked_what_they_compute_in() -> None:
    for engines in (Placement(1, 1, 0), Placement(1, 1, 0, "training")):
        assert cluster_dtype(engines, on_gpu=False) == native_dtype(on_gpu=False)


@pytest.mark.usefixtures("cluster")
def test_a_node_that_does_not_answer_is_named_whatever_it_is_asked(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_probe, "_ANSWERS_WITHIN_S", 0)
    for ask in (
        lambda: cluster_dtype(Placement(1, 1, 0), on_gpu=False),
        lambda: check_cluster(paths),
    ):
        with pytest.raises(DescribedFailure, match=r"^node [\d.]+: no answer within 0 s; it may"):
            ask()


def test_a_node_that_does_not_see_a_folder_is_named(cluster: Cluster, paths: Paths) -> None:
    runs = Path(paths.runs)
    runs.mkdir()
    if subprocess.run([*BLIND, str(runs), "true"], check=False).returncode:
        pytest.skip("this process may not mount")
    start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1")
    node = subprocess.Popen(
        [*BLIND, str(runs), *start, f"--address={cluster.address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while sum(node["Alive"] for node in ray.nodes()) < 4:
            assert node.poll() is None
            time.sleep(0.1)
        with pytest.raises(InputError) as refusal:
            check_cluster(paths)
    finally:
        node.terminate()
        node.wait()
    assert str(refusal.value).startswith("paths.runs: node ")
    assert f" does not share {runs}: what the driver's node has written there is not seen" in str(
        refusal.value
    )
    assert list(runs.iterdir()) == []


def report(python: str, ray: str) -> NodeReport:
    return NodeReport("10.0.0.2", python, ray, package_versions(), {})


def test_a_node_of_another_python_or_ray_is_named() -> None:
    ours, major = platform.python_version(), ray.__version__
    _check_node(report(ours, major), {})
    for other, words in (
        (
            report("3.9.1", major),
            "node 10.0.0.2: has Python 3.9, but the dri",
        ),
        (
            report(ours, "2.9.3"),
            "node 10.0.0.2: has Ray 2.9.3, but the driver",
        ),
    ):
        with pytest.raises(InputError, match=words):
            _check_node(other, {})


def test_a_marker_may_be_seen_late(tmp_path: Path) -> None:
    late = threading.Timer(0.5, lambda: (tmp_path / "marker").write_text("token"))
    late.start()
    assert _unread(tmp_path / "marker", "token") == ""
    late.join()
