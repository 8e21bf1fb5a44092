"""`datafree tag`: list images, tag those that are not tagged yet, write a row for each, summarise.

Memory does not grow with the number of images. With an output file, finished rows are kept in part
files beside it, so a job that was killed resumes where it stopped; the output file appears at the
end, complete. Ray starts only with `workers`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from orchestrator.cluster.placement import place
from orchestrator.cluster.resources import find_resources, local_node
from orchestrator.console import StageProgress
from orchestrator.errors import InputError, as_input_error
from orchestrator.pages.tag_sheet import SHEET_IMAGES, write_sheet
from orchestrator.run_lock import only_driver
from orchestrator.tagging.listing import ImageListing
from orchestrator.tagging.sidecars import SidecarSettings, SidecarWriter
from orchestrator.tagging.tags_file import (
    json_line,
    line_of,
    read_made_with,
    read_tags,
    row_of,
    tags_writer,
)
from orchestrator.tagging.tool_formats import check_images_below, tool_writer, written_files
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.plain_text import plain
from prompt_tuning.storage import (
    MANIFEST,
    canonical_json,
    digest,
    file_digest,
    naming,
    replacing,
    write_atomic,
)
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.new_labels import meant_labels
from prompt_tuning.tagging.tag_stream import Tagged, TagRule, chunks, tag_files
from prompt_tuning.tagging.tagger import Tagger

# A kill loses at most this many. A multiple of every batch size, so that parts hold whole batches.
_IMAGES_PER_PART = 128
_MADE_WITH = "made_with.json"
_ERRORS_SHOWN = 3
_LABELS_SHOWN = 8

# From files and their number, which only workers need, to their tags, in order.
TagFiles = Callable[[Iterable[Path], int], Iterator[Tagged]]
# From what the tags were made with to a function that adds a row.
OpenWriter = Callable[[dict[str, Any]], AbstractContextManager[Callable[[Row], object]]]


@dataclass
class Tally:
    """Counts for the summary, and the first rows, which the sheet shows."""

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
            self.errors += [row] if len(self.errors) < _ERRORS_SHOWN else []
        else:
            self.tagged += 1
            self.without += not row["tags"]
            self.labels.update(tag["name"] for tag in row["tags"])
        self.first += [row] if len(self.first) < SHEET_IMAGES else []


class Part(NamedTuple):
    """Images whose rows are kept together, in a file that is named by a digest of the images."""

    files: list[Path]
    kept: Path
    done: bool


def tag_images(
    artifact: Path,
    images: list[str],
    *,
    cache: Path,
    console: Console,
    threshold: float | None = None,
    top: int | None = None,
    labels: list[str] | None = None,
    out: Path | None = None,
    tool: str | None = None,
    sheet: Path | None = None,
    workers: int | None = None,
    sidecars: SidecarSettings | None = None,
) -> bool:
    """Tag images, and return whether any could be read (and all sidecars be written).

    `images`: files, folders and patterns. `labels`: used instead of the artifact's. `out`: the file
    of tags; without it, lines go to the standard output. `tool`: an annotation tool, in whose
    format `out` is then written. `sheet`: an HTML page of the first images.
    `workers`: number of Ray actors; without it, images are tagged in this process. `sidecars`: tags
    go to the images' XMP sidecars, not to the standard output.

    Raises:
        InputError: for a mistake in the arguments.
    """
    listing = ImageListing(images)
    if not any(True for _ in listing):
        raise InputError(f"{', '.join(images)}: no images found")
    names, labels = _resolved_labels(artifact, labels)
    if out and tool:
        check_images_below(out, listing)
    rule = TagRule(threshold, top)

    def tagged(files: Iterable[Path], count: int) -> Iterator[Tagged]:
        if workers is None:
            return _tagged_here(artifact, labels, cache, rule, files)
        return _tagged_on_workers(artifact, labels, cache, rule, files, count, workers)

    version = file_digest(artifact / MANIFEST)  # the manifest has all files' digests
    made_with = {
        "artifact": version,
        "labels": labels,
        "threshold": threshold,
        "top": top,
    }
    tally = Tally()
    in_sidecars: SidecarWriter | None = None
    if sidecars:
        tree = Artifact.load(artifact).tree
        in_sidecars = SidecarWriter(version, tree, sidecars, console)
        files, ahead = tee(listing)
        total = sum(1 for _ in listing)
        with StageProgress(console, "tagging", total) as progress:
            for pair in zip(files, tagged(ahead, total), strict=True):
                row = row_of(*pair)
                in_sidecars.add(row)
                tally.add(row)
                progress.advance(1)
    elif out:
        writer = partial(tool_writer, out, tool, names) if tool else partial(_table_writer, out)
        _fill(out, listing, made_with, tagged, tally, writer, console)
    else:
        files, ahead = tee(listing)
        count = sum(1 for _ in listing) if workers else 0
        for pair in zip(files, tagged(ahead, count), strict=True):
            row = row_of(*pair)
            with naming("standard output"):
                print(line_of(row), flush=True)
            tally.add(row)
    if sheet:
        write_sheet(sheet, tally.first, tally.tagged + tally.unreadable)
    lines = [*_summary(listing, tally), *(in_sidecars.summary() if in_sidecars else ())]
    written = [*(written_files(out, tool) if out else []), *([sheet] if sheet else [])]
    for line in [*lines, *map(str, written)]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return tally.tagged > 0 and not (in_sidecars and in_sidecars.failed)


def _resolved_labels(
    artifact: Path, labels: list[str] | None
) -> tuple[list[str], list[str] | None]:
    """The labels that tags may have, and those given, as the artifact spells them.

    Raises InputError for a bad artifact or label.
    """
    with as_input_error():
        categories = Artifact.load(artifact).categories
    if labels is None:
        return list(categories.names), None
    with as_input_error("--labels: "):
        given = list(meant_labels(labels, categories))
    return given, given


def _fill(
    out: Path,
    listing: ImageListing,
    made_with: dict[str, Any],
    tagged: TagFiles,
    tally: Tally,
    writer: OpenWriter,
    console: Console,
) -> None:
    """Write the whole file, or leave finished parts for the next start. Raises InputError."""
    folder = _parts_folder(out)
    with only_driver(folder, "--out"):
        total, missing, images = _listed(listing, folder)
        described = {**made_with, "images": images}
        if out.exists():
            _check_same(out, read_made_with(out), described)
            for row in read_tags(out):
                tally.add(row)
            console.print(f"Nothing to do: {out} is complete.", soft_wrap=True, markup=False)
        else:
            begun = folder / _MADE_WITH
            if begun.exists() and any(folder.glob("*.jsonl")):  # else no row would be lost
                _check_same(folder, json.loads(begun.read_bytes()), made_with)
            write_atomic(begun, canonical_json(made_with).encode())
            with (
                StageProgress(console, "tagging", total) as progress,
                writer(described) as write,
            ):
                for row in _kept_rows(listing, tagged, folder, missing):
                    write(row)
                    tally.add(row)
                    progress.advance(1)
        shutil.rmtree(folder)


@contextmanager
def _table_writer(out: Path, made_with: dict[str, Any]) -> Iterator[Callable[[Row], object]]:
    with (
        replacing(out, _parts_folder(out) / "whole") as whole,
        tags_writer(whole, made_with, out.suffix) as write,
    ):
        yield write


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def _check_same(place: Path, found: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    """Raises InputError when the rows in a place were made with something else."""
    if found is None:
        raise InputError(f"--out: {place} exists and is not a file of tags; choose another name")
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        raise InputError(
            f"--out: {place} was made with different {', '.join(differing)}; "
            "remove it, or choose another name"
        )


def _listed(listing: ImageListing, folder: Path) -> tuple[int, int, str]:
    """How many images there are, how many are not tagged yet, and a digest of the list."""
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
    """Size in bytes and time of the last change in ns, which differ once a file was changed."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _kept_rows(
    listing: ImageListing, tagged: TagFiles, folder: Path, missing: int
) -> Iterator[Row]:
    """Each image's row, in order; the rows of a part are on disk before the first is given."""
    # The second iterator runs ahead: by the images that are read ahead, and past finished parts.
    parts, ahead = tee(_parts(listing, folder))
    todo = (file for part in ahead if not part.done for file in part.files)
    fresh = tagged(todo, missing)
    for part in parts:
        if not part.done:
            rows = [row_of(*pair) for pair in zip(part.files, fresh, strict=False)]
            write_atomic(part.kept, "".join(map(json_line, rows)).encode())
        with part.kept.open("rb") as stream:
            yield from map(json.loads, stream)


def _tagged_here(
    artifact: Path, labels: list[str] | None, cache: Path, rule: TagRule, files: Iterable[Path]
) -> Iterator[Tagged]:
    """Tag files in this process. Raises InputError when the model is not available."""
    with as_input_error(f"{artifact}: "):
        tagger = Tagger.load(artifact, cache=cache)
    if labels:
        tagger = tagger.with_labels(labels)
    yield from tag_files(tagger, files, rule, local_node().cpus)


def _tagged_on_workers(
    artifact: Path,
    labels: list[str] | None,
    cache: Path,
    rule: TagRule,
    files: Iterable[Path],
    count: int,
    workers: int,
) -> Iterator[Tagged]:
    """Tag files on Ray. Raises InputError when the cluster has no room for so many workers."""
    from orchestrator.cluster.connect import connect, disconnect
    from workers.batch_tagging import tag_on_workers

    try:
        resources = find_resources()
        gpus = 1 if resources.gpus else 0
        cpus = int(place(workers, gpus, resources, "--workers"))
        connect(resources.cpus, resources.gpus, dashboard=False)
        # Workers may run in another folder.
        artifact, files = artifact.absolute(), (file.absolute() for file in files)
        yield from tag_on_workers(artifact, labels, cache, files, count, rule, workers, cpus, gpus)
    finally:
        disconnect()


def _summary(listing: ImageListing, tally: Tally) -> Iterator[str]:
    yield f"{tally.tagged:,} tagged, {tally.without:,} of them without a tag"
    if tally.labels:
        frequent = tally.labels.most_common(_LABELS_SHOWN)
        yield "Most frequent: " + ", ".join(f"{name} {count:,}" for name, count in frequent)
    if tally.unreadable:
        yield f"{tally.unreadable:,} could not be read, such as:"
        yield from ("  " + line_of(row).replace("\t", ": ") for row in tally.errors)
    if listing.skipped:
        yield (
            f"{listing.skipped:,} skipped (hidden, links to folders, or not named like images), "
            f"such as {listing.skipped_example}"
        )
