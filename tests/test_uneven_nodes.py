"""On a real cluster whose nodes differ: what asks for CPUs or GPUs finds room, or says why not."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from command_line import Done, run_datafree
from PIL import Image
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.tagging.serve import serve_artifacts
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.captions import Caption, CaptionWriter
from prompt_tuning.categories import Category, CategoryList
from workers import waiting
from workers.batch_tagging import files_per_task
from workers.failure import DescribedFailure
from workers.features import encode_captions
from workers.placement import NodeSettings
from workers.serving.deployment import MODEL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=7)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        disconnect()
        cluster.shutdown()


@pytest.fixture
def tag(
    cluster: Cluster,
    artifact: Path,
    tmp_path: Path,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        pixels = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:02d}.png")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_datafree(monkeypatch, capsys, "tag", artifact, *arguments)


def test_tagging_workers_fit_and_change_no_byte(tag: Callable[..., Done]) -> None:
    """Half of all CPUs for each would be 4: for the second one no node has room."""
    done = tag("photos", "--out", "spread.jsonl", "--threshold", 0, "--workers", 2)
    assert done.code == 0, done.err
    assert tag("photos", "--out", "alone.jsonl", "--threshold", 0).code == 0
    rows = Path("spread.jsonl").read_bytes()
    assert rows == Path("alone.jsonl").read_bytes()
    assert len([json.loads(row) for row in rows.splitlines()]) == 41


def test_more_workers_than_fit_are_refused(tag: Callable[..., Done]) -> None:
    done = tag("photos", "--workers", 9)
    assert done.code == 2
    assert done.err == (
        "error: --workers: 9 with 1 CPUs and 0 GPUs each can never be scheduled: there are 8 CPUs "
        "and 0 GPUs on 2 nodes; 8 would fit\n"
    )


class StopsOnceItServes(Console):
    """As Ctrl-C does, once all replicas are ready; `nodes`: where they are then."""

    nodes: list[str]

    def print(self, *said: Any, **_: Any) -> None:
        if said[0].startswith("Serving"):
            actors = ray._private.state.actors().values()
            replicas = [a for a in actors if MODEL in a["Name"] and a["State"] == "ALIVE"]
            self.nodes = [actor["Address"]["NodeID"] for actor in replicas]
            raise KeyboardInterrupt


@pytest.mark.slow
def test_replicas_fit(
    cluster: Cluster, artifact: Path, lasting_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of all CPUs for each would be 4 here too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    console = StopsOnceItServes()
    with pytest.raises(KeyboardInterrupt):
        serve_artifacts(
            [str(artifact)], cache=lasting_cache, console=console, port=port, replicas=2
        )
    [large] = cluster.worker_nodes
    assert console.nodes == [large.node_id] * 2


@pytest.mark.parametrize(
    ("count", "workers", "gpus", "size"),
    [
        (80, 1, 0, 80),
        (80, 2, 0, 40),
        (80, 3, 0, 28),
        (1, 2, 0, 4),
        (0, 2, 0, 4),
        (300, 2, 0, 76),
        (80, 2, 1, 64),
        (10**6, 8, 0, 128),
    ],
)
def test_every_worker_has_a_share_of_the_files(
    count: int, workers: int, gpus: float, size: int
) -> None:
    assert files_per_task(count, workers, gpus) == size


@pytest.mark.usefixtures("cluster")
def test_feature_tasks_that_no_node_can_run_are_given_up(
    tmp_path: Path,
    embedded_settings: VLMSettings,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting, "_SECONDS_BETWEEN_REPORTS", 1)
    monkeypatch.setattr(waiting, "_ANY_NODES", NodeSettings(wait_minutes=0.03))
    words = "feature tasks: each needs 1 CPU, 1 GPU of one node, but the nodes have 1 CPU, 0 GPU; 7"
    categories = CategoryList(categories=(Category(name="dog"), Category(name="car")))
    with CaptionWriter(tmp_path / "captions.parquet", categories) as writer:
        writer.write_caption(Caption("A dog.", (0,), "file"))
    connect()
    with pytest.raises(DescribedFailure, match=words):
        encode_captions(
            tmp_path / "captions.parquet",
            embedded_settings,
            lasting_cache,
            tmp_path / "parts",
            tmp_path / "features",
            lambda _: None,
            gpus=1,
        )
    disconnect()
    assert words in caplog.messages[0]
