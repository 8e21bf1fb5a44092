"""Machines on which Ray cannot start, or not at once: one sentence, or it starts all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.cluster.connect import connect, disconnect
from orchestrator.cluster.resources import find_resources
from orchestrator.errors import InputError

ROOT = Path(__file__).parent.parent
STARTS = """
from orchestrator.cluster.connect import connect
connect(cpus=1)
import ray
assert ray._private.worker._global_node.webui_url, "without its dashboard"
"""


def test_a_folder_too_long_for_sockets_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(InputError, match=r"^TMPDIR: must be at most 35 bytes long.* \(got \d+: /"):
        find_resources()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    find_resources()
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(InputError, match="RAY_TMPDIR: /proc cannot be written to"):
        find_resources()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAY_AUTH_MODE", "on", "RAY_AUTH_MODE: must be token or disabled, or not set"),
        ("RAY_AUTH_TOKEN", "two words", "RAY_AUTH_TOKEN: must be a token: visible ASCII"),
        ("RAY_AUTH_TOKEN_PATH", "/nowhere", "RAY_AUTH_TOKEN_PATH: '/nowhere' cannot be read"),
    ],
)
def test_a_token_that_ray_would_die_of_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        find_resources()


def test_ray_starts_without_a_home_and_with_little_shared_memory_below_the_longest_folder() -> None:
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')
    if subprocess.run([*mount, "/dev/shm", "true"], check=False).returncode:
        pytest.skip("this process may not mount")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="y" * 22, dir="/tmp") as folder:
        assert len(folder) == 35
        done = subprocess.run(
            [*mount, "/dev/shm", sys.executable, "-c", STARTS],
            env={**ours, "PYTHONPATH": str(ROOT), "HOME": "/proc", "TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ray_that_does_not_come_up_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    late: list[psutil.Process] = []

    def stop_the_first_raylet() -> None:
        while not late:
            for process in psutil.Process().children(recursive=True):
                if process.name() == "raylet":
                    process.send_signal(signal.SIGSTOP)
                    late.append(process)
            threading.Event().wait(0.01)

    threading.Thread(target=stop_the_first_raylet, daemon=True).start()
    connect(cpus=1)
    try:
        assert late
        assert not late[0].is_running()
        assert ray.available_resources()["CPU"] == 1
    finally:
        disconnect()
