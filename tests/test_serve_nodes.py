"""`serve` on a cluster of three nodes: replicas spread, a node is lost, no request fails."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from ray.cluster_utils import Cluster
from served import models_below, served

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")
        patch.setenv("OMP_NUM_THREADS", "1")
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def test_a_lost_node_loses_no_request(
    cluster: Cluster, artifact: Path, lasting_cache: Path
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (600, 600), "green").save(stream, "png")
    statuses: list[int] = []
    ended = False

    def ask_until_ended() -> None:
        while not ended:
            sent = {"images": ("a.png", stream.getvalue())}
            statuses.append(httpx.post(f"{service.url}/tag", files=sent, timeout=90).status_code)

    def wait_for_answers(count: int) -> None:
        before, deadline = len(statuses), time.monotonic() + 120
        while len(statuses) < before + count:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with (
        served([str(artifact)], lasting_cache, replicas=3, cluster=cluster.address) as service,
        ThreadPoolExecutor(6) as pool,
    ):
        nodes = cluster.list_all_nodes()
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        assert [len(models_below(raylet)) for raylet in raylets] == [1, 1, 1]
        asking = [pool.submit(ask_until_ended) for _ in range(6)]
        try:
            wait_for_answers(12)
            cluster.remove_node(nodes[-1], allow_graceful=False)
            wait_for_answers(60)
        finally:
            ended = True
        for one in asking:
            one.result()
    assert set(statuses) == {200}
