"""SIGINT and SIGTERM end every long command in order, wherever it is, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from child_processes import interrupt
from PIL import Image
from tiny_llm import write_tiny_llm

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GOES_ON = "Stopped. The same command resumes from what is finished."
STARTS_AGAIN = "Stopped. The same command starts again."
CONFIG = """
name: tiny
seeds: [0, 1]
categories: [dog, car, tree]
knowledge: {{questions: {{per_category: 0, relationships: 0}}, llm: {{model: {llm}}}}}
captions: {{files: [own.tsv], held_out: 0.3}}
hierarchy: {{groups: auto, coarse: 2, fine: 2}}
vlm: {{model: efficientnet-lite0+minilm, resolution: 224}}
tuning: {{epochs: 8, batch: 16, workers: 2}}
evaluation: {{dataset: folder, root: photos}}
sweep: {{space: {{losses.order: {{grid: [1]}}}}}}
"""
NAMES = ("dog", "car", "tree")
SENTENCES = "".join(
    f"A {look} {name} {place}.\t{name}\n"
    for name in NAMES
    for look in ("small", "old")
    for place in ("near a wall", "in the sun")
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of one's own with a language model, and six labelled images."""
    folder = tmp_path_factory.mktemp("project")
    llm = write_tiny_llm(folder / "llm")
    (folder / "tiny.yaml").write_text(CONFIG.format(llm=llm), "utf-8")
    (folder / "own.tsv").write_text(SENTENCES, "utf-8")
    (folder / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (60, 40), (40 * i, 90, 200 - 30 * i)).save(folder / f"photos/{i}.png")
    rows = "".join(f"{i}.png,{NAMES[i % 3]}\n" for i in range(6))
    (folder / "photos/labels.csv").write_text(rows, "utf-8")
    return folder


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def importing(process: psutil.Process) -> bool:
    """Whether torch is being imported, or has been."""
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def starting_ray(process: psutil.Process) -> bool:
    """Whether Ray is starting on this machine, or has started."""
    return any(below.name() == "raylet" for below in process.children())


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run tiny.yaml", GOES_ON),
        ("evaluate runs/tiny", GOES_ON),
        ("tag {artifact} photos --out tags.csv", GOES_ON),
        ("tag {artifact} photos", "Stopped. With --out, the same command resumes"),
        ("calibrate {artifact} photos --out calibrated", STARTS_AGAIN),
        ("export {artifact} --onnx model.onnx", STARTS_AGAIN),
        ("doctor --verify-clip photos", GOES_ON),
    ],
)
def test_a_signal_during_the_imports_ends_a_command_in_order(
    project: Path, artifact: Path, command: str, says: str, number: signal.Signals
) -> None:
    process = start(command.format(artifact=artifact).split(), project)
    assert says in interrupt(process, number, importing)


@pytest.mark.parametrize(
    ("command", "number", "says"),
    [
        ("run tiny.yaml", signal.SIGTERM, GOES_ON),
        ("sweep tiny.yaml", signal.SIGINT, GOES_ON),
        ("knowledge tiny.yaml --set knowledge.questions.per_category=40", signal.SIGTERM, GOES_ON),
        ("serve {artifact} --port {port}", signal.SIGINT, "Stopped."),
    ],
)
def test_a_signal_while_ray_starts_ends_a_command_in_order(
    project: Path, artifact: Path, tmp_path: Path, command: str, number: signal.Signals, says: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = command.format(artifact=artifact, port=free.getsockname()[1]).split()
    process = start([*words, "--cache", str(tmp_path)], project)
    assert says in interrupt(process, number, starting_ray)


# As Ray does, sets handlers of its own; leaves its work so slowly that nobody waits for it.
STUBBORN = """
import signal, subprocess, sys, time
from orchestrator.cluster.connect import _signal_handlers_kept
from orchestrator.interruption import interruptible
with interruptible():
    with _signal_handlers_kept():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    below = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        print(below.pid, flush=True)
        time.sleep(600)
    finally:
        print("leaving", flush=True)
        time.sleep(600)
"""


FORKING = """
import os, sys, time
from orchestrator.interruption import interruptible
with interruptible():
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"forked")
        while True:  # a signal that comes just before a sleep does not end that sleep
            time.sleep(0.1)
    os.read(reader, 6)
    os.kill(child, int(sys.argv[1]))
    _, status = os.waitpid(child, 0)
    time.sleep(1)  # in which it would end
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, -15)])
def test_a_signal_to_a_forked_child_ends_the_child_only(number: signal.Signals, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(int(number))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{code}\n"), done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    below = psutil.Process(int(process.stdout.readline()))
    # `timeout` sends its signal twice, to the process and to its group: that is one.
    process.send_signal(number)
    process.send_signal(number)
    assert process.stdout.readline() == "leaving\n", process.communicate()
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == f"\n{GOES_ON}\n"
    assert not psutil.pid_exists(below.pid) or below.status() == psutil.STATUS_ZOMBIE
