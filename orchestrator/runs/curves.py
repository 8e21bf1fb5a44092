"""Learning curves as TensorBoard events: one folder per seed, one value per epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from prompt_tuning.storage import naming

_ENTRY_OF_TAG = {
    "train/loss": "loss",
    "held_out/ranking_loss": "held_out_loss",
    "held_out/map": "held_out_map",
    "selecting/map": "selecting_map",
}


def curves_folder(run_folder: Path, seed: int) -> Path:
    """The folder of one seed's events."""
    return run_folder / "tensorboard" / f"seed-{seed}"


@contextmanager
def new_curves(folder: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """Replace a seed's events; gives a function that adds an entry of the history."""
    shutil.rmtree(folder, ignore_errors=True)
    with naming(folder):
        folder.mkdir(parents=True)
        # Not a SummaryWriter: on a full disk its thread dies and its callers wait for ever.
        with closing(EventsWriter(str(folder / "events"))) as writer:

            def add_epoch(entry: dict[str, float]) -> None:
                with naming(folder):  # threads call this too
                    for tag, name in _ENTRY_OF_TAG.items():
                        if name in entry:
                            event = Event(wall_time=time.time(), step=int(entry["epoch"]))
                            event.summary.CopyFrom(scalar(tag, entry[name]))
                            writer.write_event(event)
                    writer.flush()

            yield add_epoch
