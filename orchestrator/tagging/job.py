"""`tag`: list images, tag those that are not tagged yet, write a row for each, summarise.

Nothing is held but what is under way: a million images need no more memory than a thousand. With
an output file, rows are kept in parts beside it until all are there, so a job that was killed goes
on where it was; the file itself appears at the end, whole. Ray is touched only for `workers`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from orchestrator.cluster.placement import place
from orchestrator.cluster.resources import find_resources, local_node
from orchestrator.console import StageProgress
from orchestrator.errors import InputError
from orchestrator.pages.tag_sheet import SHEET_IMAGES, write_sheet
from orchestrator.run_lock import only_driver
from orchestrator.tagging.listing import ImageListing
from orchestrator.tagging.tags_file import (
    Row,
    json_line,
    line_of,
    plain,
    read_made_with,
    read_tags,
    row_of,
    tags_writer,
)
from prompt_tuning.storage import (
    MANIFEST,
    canonical_json,
    copy_atomic,
    digest,
    file_digest,
    naming,
    write_atomic,
)
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.new_labels import meant_labels
from prompt_tuning.tagging.tag_stream import Tagged, TagRule, chunks, tag_files
from prompt_tuning.tagging.tagger import Tagger

# What a kill loses at most; a multiple of every batch, so that batches begin anew with each part.
_IMAGES_PER_PART = 128
_MADE_WITH = "made_with.json"
_ERRORS_TOLD = 3
_LABELS_TOLD = 8


@dataclass(frozen=True)
class TagOptions:
    """What is asked. `labels`: other labels than the artifact's; `workers`: on Ray, that many."""

    artifact: Path
    names: list[str]
    out: Path | None
    sheet: Path | None
    rule: TagRule
    labels: list[str] | None
    workers: int | None
    cache: Path


@dataclass
class Tally:
    """What is told at the end; `first` are the rows that the sheet shows."""

    tagged: int = 0
    without: int = 0
    unreadable: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    errors: list[Row] = field(default_factory=list)
    first: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count an image."""
        if "error" in row:
            self.unreadable += 1
            self.errors += [row] if len(self.errors) < _ERRORS_TOLD else []
        else:
            self.tagged += 1
            self.without += not row["tags"]
            self.labels.update(tag["name"] for tag in row["tags"])
        self.first += [row] if len(self.first) < SHEET_IMAGES else []


class Part(NamedTuple):
    """Images whose rows are kept together, in a file that says by its name of which they are."""

    files: list[Path]
    kept: Path
    done: bool


def tag(options: TagOptions, console: Console) -> bool:
    """Tag images; whether any could be.

    Raises:
        InputError: for what a person has to change.
    """
    listing = ImageListing(options.names)
    if not any(True for _ in listing):
        raise InputError(f"{', '.join(options.names)}: no images there")
    options = _with_meant_labels(options)
    made_with = _made_with(options)
    tally = Tally()
    if options.out:
        _fill(options, options.out, listing, made_with, tally, console)
    else:
        for row in _rows(options, listing):
            with naming("standard output"):
                print(line_of(row), flush=True)
            tally.add(row)
    if options.sheet:
        write_sheet(options.sheet, tally.first, tally.tagged + tally.unreadable)
    _tell(options, listing, tally, console)
    return tally.tagged > 0


def _with_meant_labels(options: TagOptions) -> TagOptions:
    """With the labels as the artifact names them. Raises InputError for either that won't do."""
    try:
        categories = Artifact.load(options.artifact).categories
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None
    if options.labels is None:
        return options
    try:
        return replace(options, labels=list(meant_labels(options.labels, categories)))
    except ValueError as error:
        raise InputError(f"--labels: {error}") from None


def _made_with(options: TagOptions) -> dict[str, Any]:
    """What decides an image's tags."""
    return {
        "artifact": file_digest(options.artifact / MANIFEST),  # which has all its files' digests
        "labels": options.labels,
        "threshold": options.rule.threshold,
        "top": options.rule.top,
    }


def _fill(
    options: TagOptions,
    out: Path,
    listing: ImageListing,
    made_with: dict[str, Any],
    tally: Tally,
    console: Console,
) -> None:
    """Leave the whole file, or parts of it for the next time. Raises InputError."""
    folder = out.with_name(f".{out.name}.parts")
    with only_driver(folder, "--out"):
        total, missing, images = _listed(listing, folder)
        if out.exists():
            _check_same(out, read_made_with(out), {**made_with, "images": images})
            for row in read_tags(out):
                tally.add(row)
            console.print(f"Nothing to do: {out} is there.", soft_wrap=True, markup=False)
        else:
            begun = folder / _MADE_WITH
            if begun.exists() and any(folder.glob("*.jsonl")):  # else nothing would be lost
                _check_same(folder, json.loads(begun.read_bytes()), made_with)
            write_atomic(begun, canonical_json(made_with).encode())
            whole = folder / "whole"
            with (
                StageProgress(console, "tagging", total) as progress,
                tags_writer(whole, {**made_with, "images": images}, out.suffix) as write,
            ):
                for row in _kept_rows(options, listing, folder, missing):
                    write(row)
                    tally.add(row)
                    progress.advance(1)
            copy_atomic(whole, out)
        shutil.rmtree(folder)


def _check_same(place: Path, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Raises InputError when what is there was made with something else."""
    if found is None:
        raise InputError(f"--out: {place} is there and no file of tags; choose another name")
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise InputError(
            f"--out: {place} was made with other {', '.join(differing)}; "
            "remove it, or choose another name"
        )


def _listed(listing: ImageListing, folder: Path) -> tuple[int, int, str]:
    """How many images there are, how many are not tagged yet, and a digest of which."""
    total, missing, keys = 0, 0, []
    for part in _parts(listing, folder):
        total += len(part.files)
        missing += 0 if part.done else len(part.files)
        keys.append(part.kept.name)
    return total, missing, digest(keys)


def _parts(listing: ImageListing, folder: Path) -> Iterator[Part]:
    for number, files in enumerate(chunks(listing, _IMAGES_PER_PART)):
        key = digest([[plain(str(file)), *_size_and_time(file)] for file in files])
        kept = folder / f"{number:08d}-{key[:20]}.jsonl"
        yield Part(files, kept, kept.exists())


def _size_and_time(file: Path) -> tuple[int, ...]:
    """What shows that a file was changed."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _kept_rows(
    options: TagOptions, listing: ImageListing, folder: Path, missing: int
) -> Iterator[Row]:
    """Each image's row, in order; those of a part are kept as soon as it is done."""
    # The copy runs ahead by what is read ahead, and past parts that were done before.
    parts, ahead = tee(_parts(listing, folder))
    todo = (file for part in ahead if not part.done for file in part.files)
    fresh = _tagged(options, todo, missing)
    for part in parts:
        if not part.done:
            rows = [row_of(*pair) for pair in zip(part.files, fresh, strict=False)]
            write_atomic(part.kept, "".join(map(json_line, rows)).encode())
        with part.kept.open("rb") as stream:
            yield from map(json.loads, stream)


def _rows(options: TagOptions, listing: ImageListing) -> Iterator[Row]:
    """Each image's row, in order."""
    files, ahead = tee(listing)
    count = sum(1 for _ in listing) if options.workers else 0
    for pair in zip(files, _tagged(options, ahead, count), strict=True):
        yield row_of(*pair)


def _tagged(options: TagOptions, files: Iterable[Path], count: int) -> Iterator[Tagged]:
    """What became of each file, in order. The model is loaded for the first one.

    `count`: how many files, which only workers need to know.

    Raises:
        InputError: when the model cannot be had, or when there is no room for so many workers.
    """
    if options.workers is not None:
        yield from _tagged_on_workers(options, options.workers, files, count)
        return
    try:
        tagger = Tagger.load(options.artifact, cache=options.cache)
    except ValueError as error:
        raise InputError(f"{options.artifact}: {error}") from None
    if options.labels:
        tagger = tagger.with_labels(options.labels)
    yield from tag_files(tagger, files, options.rule, local_node().cpus)


def _tagged_on_workers(
    options: TagOptions, workers: int, files: Iterable[Path], count: int
) -> Iterator[Tagged]:
    from orchestrator.cluster.connect import connect, disconnect
    from workers.batch_tagging import tag_on_workers

    try:
        resources = find_resources()
        gpus = 1 if resources.gpus else 0
        cpus = int(place(workers, gpus, resources, "--workers"))
        connect(resources.cpus, resources.gpus)
        yield from tag_on_workers(
            options.artifact.absolute(),
            options.labels,
            options.cache,
            (file.absolute() for file in files),  # workers may have another folder
            count,
            options.rule,
            workers,
            cpus,
            gpus,
        )
    finally:
        disconnect()


def _tell(options: TagOptions, listing: ImageListing, tally: Tally, console: Console) -> None:
    told = [f"{tally.tagged:,} tagged, {tally.without:,} of them without a tag"]
    if tally.labels:
        often = tally.labels.most_common(_LABELS_TOLD)
        told.append("Most often: " + ", ".join(f"{name} {count:,}" for name, count in often))
    if tally.unreadable:
        told.append(f"{tally.unreadable:,} could not be read, such as:")
        told += ["  " + line_of(row).replace("\t", ": ") for row in tally.errors]
    if listing.passed_over:
        told.append(
            f"{listing.passed_over:,} passed over that are hidden, links to folders, or not named "
            f"like images, such as {listing.passed_over_example}"
        )
    told += [str(file) for file in (options.out, options.sheet) if file]
    for line in told:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
