"""TensorBoard events of a run: what tuning reported, epoch by epoch, for each seed.

Those of a whole run are in test_resume.py.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from orchestrator.runs.curves import curves_folder, new_curves

Curves = dict[str, list[tuple[int, float]]]

HISTORY = [
    {"epoch": 1, "loss": 3.5, "held_out_loss": 2.0, "held_out_map": 40.5},
    {"epoch": 2, "loss": 2.5, "held_out_loss": 1.5, "held_out_map": 50.25},
]


def read_curves(folder: Path) -> Curves:
    """The scalars of a folder's one events file: (step, value) of each by tag."""
    (file,) = folder.iterdir()
    content, place, curves = file.read_bytes(), 0, Curves()
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
        place += 16 + length
    return curves


def expected(history: list[dict[str, float]]) -> Curves:
    tags = {
        "train/loss": "loss",
        "held_out/ranking_loss": "held_out_loss",
        "held_out/map": "held_out_map",
    }
    return {
        tag: [(int(entry["epoch"]), pytest.approx(entry[name])) for entry in history]
        for tag, name in tags.items()
    }


def test_an_epoch_can_be_read_while_tuning_goes_on(tmp_path: Path) -> None:
    folder = curves_folder(tmp_path, 3)
    assert folder == tmp_path / "tensorboard/seed-3"
    with new_curves(folder) as add_epoch:
        for epochs, entry in enumerate(HISTORY, start=1):
            add_epoch(entry)
            deadline = time.monotonic() + 30  # far less than tensorboardX's own two minutes
            while read_curves(folder) != expected(HISTORY[:epochs]):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_seed_that_is_tuned_again_starts_afresh(tmp_path: Path) -> None:
    with new_curves(tmp_path) as add_epoch:
        add_epoch(HISTORY[0])
    with new_curves(tmp_path) as add_epoch:
        for entry in HISTORY:
            add_epoch(entry)
    assert read_curves(tmp_path) == expected(HISTORY)


MANY = """
import sys
from pathlib import Path
from orchestrator.runs.curves import new_curves
with new_curves(Path(sys.argv[1], "curves")) as add_epoch:
    for epoch in range(1000):
        add_epoch({"epoch": epoch, "loss": 1.0})
"""


def test_a_full_disk_ends_it_and_names_the_folder(tmp_path: Path) -> None:
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8k none "$0" && exec "$@"')
    if subprocess.run([*mount, str(tmp_path), "true"], check=False).returncode:
        pytest.skip("this process may not mount")
    done = subprocess.run(
        [*mount, str(tmp_path), sys.executable, "-c", MANY, str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.endswith(f"No space left on device: '{tmp_path}/curves'\n")
