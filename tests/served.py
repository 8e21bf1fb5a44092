"""`datafree serve` as a process of its own, over a real Ray."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from losing_model import LOADED

ROOT = Path(__file__).parent.parent

# `datafree serve` whose models can lose their device.
_SERVE = """
import json
import sys
from pathlib import Path
from losing_model import LosingModel
from rich.console import Console
from orchestrator.interruption import interruptible
from orchestrator.tagging.serve import serve_artifacts
from workers.serving import deployment
from workers.serving.limits import Limits
deployment._Model = LosingModel
artifacts, port, cache, limits, review, replicas = json.loads(sys.argv[1])
console = Console(stderr=True)
with interruptible():
    serve_artifacts(
        artifacts,
        cache=Path(cache),
        console=console,
        port=port,
        limits=Limits(**limits),
        review=review and Path(review),
        replicas=replicas and (replicas, replicas),
    )
"""


@dataclass(frozen=True)
class Service:
    """A running service. `url`: where; `process`: of the command; `loaded`: see `LOADED`."""

    url: str
    process: subprocess.Popen[str]
    loaded: Path

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        return models_below(self.process.pid)

    def loaded_replicas(self, count: int) -> list[psutil.Process]:
        """The processes that hold a model, once there are so many and each has loaded it."""
        deadline = time.monotonic() + 300
        while True:
            found = self.replicas()
            if len(found) == count and all((self.loaded / str(one.pid)).exists() for one in found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


def models_below(pid: int) -> list[psutil.Process]:
    """The processes that hold a model, and that this one or its children started."""
    below = psutil.Process(pid).children(recursive=True)
    return [process for process in below if _holds_model(process)]


class HalfSent:
    """A request for tags of an image, of which all but `sent` bytes are still to be sent."""

    def __init__(self, url: str, content: bytes, sent: int = 1000) -> None:
        host, port = url.removeprefix("http://").split(":")
        head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        body = head + content + b"\r\n--cut--\r\n"
        self._connection = socket.create_connection((host, int(port)), timeout=60)
        self._connection.sendall(
            f"POST /tag?artifact=all HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: multipart/form-data; boundary=cut\r\n\r\n".encode()
        )
        self._connection.sendall(body[:sent])
        self._rest = body[sent:]

    def send(self, count: int) -> None:
        """Send so many bytes more."""
        self._connection.sendall(self._rest[:count])
        self._rest = self._rest[count:]

    def finish(self) -> int:
        """Send the rest; the status of the answer."""
        self.send(len(self._rest))
        return self.status()

    def status(self) -> int:
        """The status of the answer, once it comes."""
        return int(self._connection.recv(100).split()[1])

    def close(self) -> None:
        self._connection.close()


def _holds_model(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:  # it has just died
        return False
    return "Replica" in title and "TaggingModel" in title


@contextmanager
def served(
    artifacts: list[str],
    cache: Path,
    review: Path | None = None,
    replicas: int | None = None,
    cluster: str | None = None,
    **limits: float,
) -> Iterator[Service]:
    """Serve until the block ends, with SIGTERM unless it has ended the service by itself.

    `cluster`: the address of the Ray to run on; by default one of its own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "CUDA_VISIBLE_DEVICES": "",
        **({"RAY_ADDRESS": cluster} if cluster else {}),
    }
    given = json.dumps([artifacts, port, str(cache), limits, review and str(review), replicas])
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile() as log, tempfile.TemporaryDirectory() as loaded:
        environment[LOADED] = loaded
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, given], env=environment, text=True, stderr=log
        )
        try:
            deadline = time.monotonic() + 300
            # All replicas are ready then; one alone answers before.
            while "Serving " not in (said := Path(log.name).read_text()):
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
            yield Service(url, process, Path(loaded))
        finally:
            process.terminate()
            try:
                process.wait(timeout=120)
            finally:
                process.kill()
                print(Path(log.name).read_text(), file=sys.stderr)
