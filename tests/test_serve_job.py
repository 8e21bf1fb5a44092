"""`serve` as a command: how many replicas, how long it waits for them, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from command_line import run_datafree
from ray import serve as ray_serve
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
    ServeStatus,
)
from rich.console import Console

from orchestrator.cluster.resources import Node, Resources
from orchestrator.errors import InputError
from orchestrator.tagging import serve as serve_job
from orchestrator.tagging.serve import serve_artifacts
from workers import waiting
from workers.failure import DescribedFailure, describe
from workers.placement import NodeSettings
from workers.serving.deployment import APPLICATION, MODEL, application
from workers.serving.limits import Limits


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[Console], None]:
    """Serves no artifact, at a port that is free."""
    return lambda console: serve_artifacts([], cache=tmp_path, console=console, port=0)


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ServeStatus | BaseException]]:
    """What Ray Serve, which is not started, says of itself, in turn."""
    queue: list[ServeStatus | BaseException] = []

    def status() -> ServeStatus:
        if isinstance(now := queue.pop(0), BaseException):
            raise now
        return now

    def nothing(*_: Any, **__: Any) -> None: ...

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_serve, "status", status)
    monkeypatch.setattr(ray_serve, "start", nothing)
    monkeypatch.setattr(ray_serve, "run_many", lambda *_, **__: [None])
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(serve_job, "find_resources", lambda: Resources((Node(2, 0),)))
    monkeypatch.setattr(serve_job, "connect", nothing)
    monkeypatch.setattr(serve_job, "disconnect", nothing)
    monkeypatch.setattr(serve_job, "Lifeline", SimpleNamespace(remote=nothing))
    monkeypatch.setattr(serve_job, "_POLL_S", 0)
    monkeypatch.setattr(serve_job, "_SECONDS_BETWEEN_REPORTS", -1)
    yield queue
    assert not queue


def service(status: ApplicationStatus, running: int, message: str = "") -> ServeStatus:
    model = DeploymentStatusOverview(
        DeploymentStatus.UPDATING,
        DeploymentStatusTrigger.CONFIG_UPDATE_STARTED,
        {ReplicaState.RUNNING: running, ReplicaState.STARTING: 2 - running},
        "",
    )
    return ServeStatus(
        applications={APPLICATION: ApplicationStatusOverview(status, message, 0, {MODEL: model})}
    )


LOADING = service(ApplicationStatus.DEPLOYING, 0)
READY = service(ApplicationStatus.RUNNING, 2)


def test_a_head_without_cpus_is_refused(
    serve: Callable[[Console], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_job, "find_resources", lambda: Resources((Node(0, 0),)))
    with pytest.raises(InputError, match=r"--replicas: 1 with 1 CPUs .* can never be scheduled"):
        serve(Console())


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            ServeStatus(),
            "failed: the service was stopped by another process, such as `serve shutdown`",
        ),
        (
            service(ApplicationStatus.DEPLOY_FAILED, 0, "no\nmemory"),
            "failed: Ray Serve could not start the models: no memory",
        ),
    ],
)
@pytest.mark.parametrize("before", [[], [READY]])
def test_a_service_that_ends_on_its_own_is_reported_in_one_line(
    statuses: list[ServeStatus | BaseException],
    serve: Callable[[Console], None],
    before: list[ServeStatus],
    end: ServeStatus,
    words: str,
) -> None:
    statuses += [ServeStatus(), *before, end]
    with pytest.raises(DescribedFailure) as failure:
        serve(Console(quiet=True))
    assert describe(failure.value) == words


def test_what_the_models_wait_for_is_reported_and_the_wait_ends(
    statuses: list[ServeStatus | BaseException],
    serve: Callable[[Console], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    statuses += [ServeStatus(), LOADING, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        serve(Console(width=200))
    printed = capsys.readouterr().out
    assert "serve: 0 of 2 replicas are ready after 0 s; each needs 1 CPU; free are 0 CPU" in printed
    statuses += [ServeStatus(), LOADING]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {}}])
    monkeypatch.setattr(waiting, "_ANY_NODES", NodeSettings(wait_minutes=1e-9))
    with pytest.raises(DescribedFailure, match=r"gave up .*serve: 0 of 2 .*; each needs 1 CPU of"):
        serve(Console(quiet=True))


@pytest.mark.parametrize("loaded", [False, True])
def test_requests_get_time_to_finish_only_once_there_can_be_some(
    statuses: list[ServeStatus | BaseException],
    serve: Callable[[Console], None],
    capsys: pytest.CaptureFixture[str],
    loaded: bool,
) -> None:
    statuses += [ServeStatus(), *([READY] * loaded), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        serve(Console())
    assert ("Stopping: requests under way" in capsys.readouterr().out) == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("waiting: 0", "limits.yaml: waiting: must be at least 1"),
        ("wating: 7", "limits.yaml: wating: "),
        ("request_bytes: 200_000_000", "limits.yaml: request_bytes: must be a whole number"),
        ("all_bytes: 5", "all_bytes must be at least request_bytes, 100000000 (got 5)"),
        ("[]", "limits.yaml: must be a mapping of fields"),
    ],
)
def test_mistakes_in_limits_are_reported_by_their_names(
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "limits.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    done = run_datafree(monkeypatch, capsys, "serve", "starter", "--limits", "limits.yaml")
    assert done.code == 2
    assert message in done.err


def test_the_limits_in_the_documentation_are_the_defaults() -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)
    assert {name: float(value) for name, value in table} == Limits().model_dump()


def test_replicas_between_two_numbers_are_left_to_ray_serve(tmp_path: Path) -> None:
    def config(replicas: tuple[int, int]) -> DeploymentConfig:
        built = application({}, tmp_path, replicas, 1, 0, Limits(), None)
        return built._bound_deployment._deployment_config

    fixed, scaled = config((2, 2)), config((1, 4)).autoscaling_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (2, None)
    assert scaled is not None
    assert (scaled.min_replicas, scaled.max_replicas) == (1, 4)
    assert scaled.target_ongoing_requests < Limits().waiting  # else nothing would start another
