"""What `datafree serve` gives, holds and survives.

    python benchmarks/serving.py [--parts idle memory slow load disturbed] [--seconds 20]

The command runs as its own process; its clients are threads here, on the same cores. Images are
JPEGs of 500 × 375, generated from a seed; the artifacts are tuned here on sentences. Each part
takes a minute or less, `load` less than three. The last line is one JSON object.

- `idle`: CPU seconds per second without requests, and the proportional memory (PSS) of all
  processes, by kind; `front` is the command itself, which takes the requests.
- `memory`: 60 clients send bodies of 20 MB at once: how much the front grows (peak, and 5 s later),
  and all processes together; a client that is refused does not ask again.
- `slow`: 300 senders of one byte a second, whose bodies would fill the memory three times, beside 8
  clients: `failed` counts their answers other than 200 after the first two seconds.
- `load`: 1, 8 and 32 clients with one image per request, over connections that stay open. `bare` is
  the model in this process with the same images: one at a time (the upper limit for one client),
  and in batches of the service's size, one thread per batch (the upper limit for many).
  `relative_32`: of 32 clients, to the latter.
- `disturbed`: 8 clients go on while a model replica is killed (SIGKILL) after a quarter and three
  quarters of `--disturbed-seconds`, and the artifact is replaced after half. `failed` counts every
  answer other than 200 and every broken connection: clients do not retry. `second_tries` counts the
  service's own retries.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from image_features import write_photo
from tagging import CATEGORIES, SENTENCES

from prompt_tuning import Tagger, load_vlm, tune
from prompt_tuning.images import read_image
from prompt_tuning.storage import MANIFEST, publishing
from prompt_tuning.tuning.trainer import TuningSettings

PARTS = ("idle", "memory", "slow", "load", "disturbed")
CLIENTS = (1, 8, 32)
PHOTOS = 64


Figures = dict[str, object]


class Answered(NamedTuple):
    """A request's status (0: no answer), seconds, and version of the artifact."""

    status: int
    seconds: float
    version: str = ""


class Service(NamedTuple):
    """A running `datafree serve`."""

    port: int
    process: subprocess.Popen[bytes]

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        return [
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if "Replica" in (title := " ".join(process.cmdline())) and "TaggingModel" in title
        ]

    def processes(self) -> list[psutil.Process]:
        """The command, and what it started."""
        command = psutil.Process(self.process.pid)
        return [command, *command.children(recursive=True)]

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def serving(artifact: Path, cache: Path) -> Iterator[Service]:
    """`datafree serve` until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "orchestrator", "serve", str(artifact)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--cache", str(cache)], stderr=subprocess.DEVNULL
    )
    service = Service(port, process)
    try:
        while True:
            assert process.poll() is None
            try:
                if service.get("/health")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield service
    finally:
        process.terminate()
        process.wait()


def body_of(image: bytes, name: str = "a.jpg") -> tuple[bytes, dict[str, str]]:
    """A multipart body of one image, and its headers."""
    head = f'--cut\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return head.encode() + image + b"\r\n--cut--\r\n", {
        "Content-Type": "multipart/form-data; boundary=cut"
    }


def client(port: int, images: list[bytes], until: Callable[[], bool]) -> list[Answered]:
    """Send image after image; a broken connection is reopened for the next one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    answers: list[Answered] = []
    for number in range(sys.maxsize):
        if until():
            return answers
        body, headers = body_of(images[number % len(images)])
        begun = time.perf_counter()
        try:
            connection.request("POST", "/tag?threshold=0", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            version = json.loads(text).get("version", "")
            answers.append(Answered(answer.status, time.perf_counter() - begun, version))
        except (OSError, http.client.HTTPException):
            answers.append(Answered(0, time.perf_counter() - begun))
            connection.close()
    raise AssertionError


def load(
    port: int, images: list[bytes], clients: int, seconds: float
) -> tuple[list[Answered], float]:
    """All answers to `clients` in so many seconds, and the seconds until the last one."""
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        turned = [images[k:] + images[:k] for k in range(clients)]
        asked = [
            pool.submit(client, port, turned[k], lambda: time.monotonic() > begun + seconds)
            for k in range(clients)
        ]
        answers = [answer for one in asked for answer in one.result()]
    return answers, time.monotonic() - begun


def bare(tagger: Tagger, images: list[bytes], batch: int, threads: int) -> float:
    """Images per second, by threads that each decode and score batches of their own."""

    def work(contents: list[bytes]) -> None:
        pixels = [tagger.pixels(read_image(content, 10**8)) for content in contents]
        tagger.tags(tagger.score_pixels(torch.stack(pixels)), 0)

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, [images[k : k + batch] for k in range(0, len(images), batch)]))
    return len(images) / (time.perf_counter() - begun)


def pss_mb(process: psutil.Process) -> float:
    """Memory of a process; what it shares with others counts in equal parts."""
    try:
        return float(process.memory_full_info().pss) / 1e6
    except psutil.Error:  # it has just ended
        return 0.0


def kind_of(process: psutil.Process) -> str:
    """What a process is there for."""
    title = " ".join(process.cmdline())
    kinds = {"orchestrator": "front", "TaggingModel": "models", "ray::IDLE": "prestarted"}
    names = {"gcs_server": "gcs", "raylet": "raylet", "ServeController": "controller"}
    return next((kind for word, kind in (kinds | names).items() if word in title), "others of Ray")


def idle(service: Service, seconds: float) -> Figures:
    """CPU and memory of a service that nobody asks."""

    def cpu(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    time.sleep(5)
    processes = service.processes()
    before = {process.pid: cpu(process) for process in processes}
    time.sleep(seconds)
    used: dict[str, float] = {}
    held: dict[str, float] = {}
    for process in processes:
        kind = kind_of(process)
        share = (cpu(process) - before[process.pid]) / seconds
        used[kind] = used.get(kind, 0) + share
        held[kind] = held.get(kind, 0) + pss_mb(process)
    return {
        "cpu": round(sum(used.values()), 3),
        "cpu_by_kind": {kind: round(share, 3) for kind, share in used.items()},
        "pss_mb": round(sum(held.values())),
        "pss_mb_by_kind": {kind: round(size) for kind, size in held.items()},
    }


def memory(service: Service, image: bytes, bodies: int = 60, size: int = 20_000_000) -> Figures:
    """How the memory grows while bodies come that are larger together than it may be."""
    content = image + bytes(size - len(image) - 1000)  # what follows a JPEG's end is not read
    processes = service.processes()
    front = processes[0]
    before, all_before = pss_mb(front), sum(map(pss_mb, processes))
    peak, all_peak, ended = before, all_before, threading.Event()

    def watch() -> None:
        nonlocal peak, all_peak
        while not ended.wait(0.02):
            peak = max(peak, now := pss_mb(front))
            all_peak = max(all_peak, now + sum(map(pss_mb, processes[1:])))

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(bodies) as pool:
        sent = [pool.submit(once, service.port, content) for _ in range(bodies)]
        statuses = [one.result() for one in sent]
    time.sleep(5)
    ended.set()
    watching.join()
    return {
        "front_grows_mb": round(peak - before),
        "front_grows_after_mb": round(pss_mb(front) - before),
        "all_grow_mb": round(all_peak - all_before),
        "answers": {status: statuses.count(status) for status in sorted(set(statuses))},
    }


def once(port: int, content: bytes) -> int:
    """The status of one request."""
    return next(iter(client(port, [content], iter([False, True]).__next__))).status


def slow(service: Service, images: list[bytes], seconds: float, senders: int = 300) -> Figures:
    """What 8 clients get beside senders of one byte a second."""
    head = (
        "POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1500000\r\n"
        "Content-Type: multipart/form-data; boundary=cut\r\n\r\n--cut"
    )
    sockets = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(senders)]
    ended = threading.Event()

    def send() -> None:
        for one in sockets:
            one.sendall(head.encode())
        while not ended.wait(1):
            for one in sockets:
                with suppress(OSError):  # refused
                    one.send(b"x")

    sending = threading.Thread(target=send)
    sending.start()
    load(service.port, images, 8, 2)
    answers, took = load(service.port, images, 8, seconds)
    ended.set()
    sending.join()
    for one in sockets:
        one.close()
    return figures_of(answers, took) | {"failed": sum(one.status != 200 for one in answers)}


def figures_of(answers: list[Answered], took: float) -> Figures:
    """Throughput and latency."""
    times = sorted(1000 * answer.seconds for answer in answers)
    return {
        "requests_s": round(len(answers) / took, 2),
        "p50_ms": round(statistics.median(times), 1),
        "p99_ms": round(times[int(0.99 * len(times))], 1),
    }


def disturbed(
    service: Service, artifact: Path, other: Path, images: list[bytes], seconds: float
) -> list[Answered]:
    """The answers to 8 clients, while replicas are killed and the artifact is replaced."""

    def replace() -> None:
        with publishing(artifact, replace=True) as staging:
            for file in other.iterdir():
                if file.name != MANIFEST:
                    shutil.copy(file, staging)

    def kill() -> None:
        service.replicas()[0].kill()

    timers = [
        threading.Timer(seconds / 4, kill),
        threading.Timer(seconds / 2, replace),
        threading.Timer(3 * seconds / 4, kill),
    ]
    for timer in timers:
        timer.start()
    answers, _ = load(service.port, images, 8, seconds)
    for timer in timers:
        timer.join()
    return answers


def bare_figures(tagger: Tagger, images: list[bytes], cores: int) -> dict[str, float]:
    """The upper limits for one client and for many."""
    for _ in range(2):  # the first warms up
        one = bare(tagger, images, 1, 1)
        batched = max(bare(tagger, images, tagger.batch, threads) for threads in (1, cores))
    return {"bare_one_s": round(one, 2), "bare_batched_s": round(batched, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--disturbed-seconds", type=float, default=60)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    vlm = load_vlm(cache=options.cache)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        artifact, other = Path(name, "artifact"), Path(name, "other")
        settings = TuningSettings(epochs=2, batch=32)
        for target, sentences in ((artifact, SENTENCES), (other, SENTENCES[::2])):
            tune(vlm, CATEGORIES, sentences, tuning=settings).save(target)
        draw = np.random.default_rng(0)
        images = []
        for _ in range(PHOTOS):
            write_photo(photo := Path(name, "photo.jpg"), draw)
            images.append(photo.read_bytes())
        if "load" in options.parts:
            tagger = Tagger.load(artifact, cache=options.cache)
            result |= (upper := bare_figures(tagger, images, cores))
            print(upper, flush=True)
        with serving(artifact, options.cache) as service:
            if "idle" in options.parts:
                result["idle"] = idle(service, options.seconds)
                print(result["idle"], flush=True)
            load(service.port, images, 8, 5)  # warms up
            if "memory" in options.parts:
                result["memory"] = memory(service, images[0])
                print(result["memory"], flush=True)
            if "slow" in options.parts:
                result["slow"] = slow(service, images, options.seconds)
                print(result["slow"], flush=True)
            if "load" in options.parts:
                for clients in CLIENTS:
                    answers, took = load(service.port, images, clients, options.seconds)
                    assert {answer.status for answer in answers} == {200}
                    result[f"clients_{clients}"] = figures = figures_of(answers, took)
                    print(clients, figures, flush=True)
                many = len(answers) / took
                result["relative_32"] = round(many / upper["bare_batched_s"], 3)
            if "disturbed" in options.parts:
                answers = disturbed(service, artifact, other, images, options.disturbed_seconds)
                [tries] = [
                    float(line.split()[1])
                    for line in service.get("/metrics")[1].decode().splitlines()
                    if line.startswith("datafree_second_tries_total")
                ]
                result["disturbed"] = {
                    "failed": sum(answer.status != 200 for answer in answers),
                    "requests": len(answers),
                    "versions": len({answer.version for answer in answers if answer.version}),
                    "second_tries": int(tries),
                    "longest_s": round(max(answer.seconds for answer in answers), 2),
                }
    result |= {"cores": cores, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
