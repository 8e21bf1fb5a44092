"""Learning curves as TensorBoard events: a folder a seed, a scalar an epoch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

_ENTRY_OF_TAG = {
    "train/loss": "loss",
    "held_out/ranking_loss": "held_out_loss",
    "held_out/map": "held_out_map",
    "selecting/map": "selecting_map",
}


def curves_folder(run_folder: Path, seed: int) -> Path:
    """Where a run keeps the events of one seed."""
    return run_folder / "tensorboard" / f"seed-{seed}"


@contextmanager
def new_curves(folder: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """Start a seed's events afresh; gives the function that adds an entry of the history."""
    shutil.rmtree(folder, ignore_errors=True)
    # Its own flush() leaves behind what still waits in its queue.
    with SummaryWriter(str(folder), flush_secs=1) as writer:

        def add_epoch(entry: dict[str, float]) -> None:
            for tag, name in _ENTRY_OF_TAG.items():
                if name in entry:
                    writer.add_scalar(tag, entry[name], int(entry["epoch"]))

        yield add_epoch
