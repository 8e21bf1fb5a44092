"""What commands tell people: progress of long work, as a bar in a terminal and otherwise a plain
line every 15 s; and numbers of things."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 15.0


def counted(number: int, noun: str) -> str:
    """`1 sidecar` or `2,000 sidecars`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class StageProgress:
    """Shows how much of a stage is done, with a note such as tokens/s or a loss."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._done, self._started, self._spoke = 0, time.monotonic(), time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> StageProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(self._name, total=self._total, note="")
            self._bar.start()
        else:
            self._console.print(f"{self._name}: {self._total} to do")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def advance(self, count: int, note: str = "") -> None:
        """Count items as done."""
        self._done += count
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=note)
        elif time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._spoke = time.monotonic()
            elapsed = self._spoke - self._started
            left = elapsed / max(self._done, 1) * (self._total - self._done)
            self._console.print(
                f"{self._name}: {self._done} of {self._total} in {elapsed:.0f} s, "
                f"{left:.0f} s left{', ' + note if note else ''}"
            )


@contextmanager
def status(console: Console, text: str) -> Iterator[None]:
    """Show a text during work of unknown length."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


def quieten_libraries() -> None:
    """Hide other libraries' bars and notices, but not errors. Call it before tqdm is imported."""
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    warnings.filterwarnings("ignore", module="torchvision")
