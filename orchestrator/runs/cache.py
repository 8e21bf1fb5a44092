"""`cache`: list the results in the cache and the runs that use them; remove unused results."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.errors import InputError
from prompt_tuning.storage import write_atomic
from workers.stage import Stage

# The names of the stages are also the folders of their results.
_STAGES = (
    "knowledge",
    "caption_features",
    "hierarchy",
    "tuning",
    "images",
    "image_features",
    "evaluation",
)
# Never removed: answers of language models, and what was assembled or downloaded.
_KEPT = ("answers", "imported", "embedded_llm", "imagenet_anchors", "stamps")
_PLANNED = ".planned.json"
_DAY = 24 * 3600.0
_KEY_SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """The result of a stage, or the parts of an unfinished one.

    `age`: seconds since its last change. `runs`: names of the run folders that refer to it.
    """

    folder: Path
    stage: str
    key: str
    size: int
    age: float
    runs: tuple[str, ...]

    @property
    def removable(self) -> bool:
        """Whether no run refers to it and it has not changed for a day."""
        return not self.runs and self.age > _DAY


def note_planned(run_folder: Path, stages: Iterable[Stage]) -> None:
    """Note the keys of a run that starts, so that it still refers to them if it is interrupted."""
    write_atomic(run_folder / _PLANNED, json.dumps([stage.key for stage in stages]).encode())


def show_cache(cache: Path, runs: Path, console: Console, remove: bool, dry_run: bool) -> None:
    """List what the cache holds; with `remove` and without `dry_run` remove what is removable.

    Raises InputError for `remove` while a run is working, or without a folder of runs.
    """
    if remove and not runs.is_dir():
        raise InputError(f"--runs: must be an existing folder for --remove (got {runs})")
    with ExitStack() as locks:
        if remove and not dry_run:
            _lock_runs(runs, locks)
        _show_cache(cache, list_cache(cache, runs), console, remove and not dry_run)


def _show_cache(cache: Path, entries: list[Entry], console: Console, remove: bool) -> None:
    table = Table("stage", "key", "MB", "days", "runs", title=str(cache))
    for entry in entries:
        where = ", ".join(entry.runs) or ("none: removable" if entry.removable else "none yet")
        days = f"{entry.age / _DAY:.1f}"
        table.add_row(entry.stage, entry.key[:_KEY_SHOWN], _megabytes(entry.size), days, where)
    for name in _KEPT:
        if (cache / name).exists():
            size = _size_and_change(cache / name)[0]
            table.add_row(name, "", _megabytes(size), "", "all (never removed)")
    console.print(table)
    removable = [entry for entry in entries if entry.removable]
    freed = _megabytes(sum(entry.size for entry in removable))
    if remove:
        for entry in removable:
            shutil.rmtree(entry.folder)
        console.print(f"removed: {len(removable)} results, {freed} MB")
    else:
        console.print(
            f"{len(removable)} results, {freed} MB, can be removed with --remove: no run refers to "
            "them, and they have not changed for a day"
        )


def list_cache(cache: Path, runs: Path) -> list[Entry]:
    """Results and unfinished parts in a cache, by stage, newest first."""
    referring = _runs_by_key(runs)
    found = [(stage, f.name, f) for stage in _STAGES for f in (cache / stage).glob("[!.]*")]
    for folder in (cache / "parts").glob("[!.]*-*"):
        stage, _, key = folder.name.rpartition("-")
        found.append((f"{stage} (parts)", key, folder))
    entries = []
    for stage, key, folder in found:
        try:
            size, changed = _size_and_change(folder)
        except FileNotFoundError:  # a run that is working has just finished with it
            continue
        age = max(0.0, time.time() - changed)
        entries.append(Entry(folder, stage, key, size, age, tuple(sorted(referring[key]))))
    return sorted(entries, key=lambda entry: (entry.stage, entry.age))


def _runs_by_key(runs: Path) -> defaultdict[str, set[str]]:
    """The runs that refer to each key: by their plan, by `run.json`, sweeps by their trials too."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in (*runs.glob("*/run.json"), *runs.glob("*/*/run.json")):
        try:
            stages = json.loads(file.read_bytes())["stages"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"--runs: {file} cannot be read: {error}") from None
        for stage in stages.values():
            found[stage["key"]].add(file.relative_to(runs).parts[0])
    for file in runs.glob(f"*/{_PLANNED}"):
        for key in json.loads(file.read_bytes()):
            found[key].add(file.parent.name)
    for file in runs.glob("*/trials/*/*.json"):
        found[file.stem].add(file.relative_to(runs).parts[0])
    return found


def _lock_runs(runs: Path, locks: ExitStack) -> None:
    """Keep runs from starting while results are removed. Raises InputError if one is working."""
    for file in runs.glob("*/.lock"):
        lock = locks.enter_context(file.open())
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--remove: {file.parent} is in use by another command; wait until it ends"
            ) from None


def _size_and_change(folder: Path) -> tuple[int, float]:
    """Bytes of all files below a folder, and the time of the last change."""
    stats = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
