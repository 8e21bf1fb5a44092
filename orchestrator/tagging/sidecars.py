"""`datafree tag --format xmp` and `datafree untag`: tags in the sidecars of many photos.

A sidecar that cannot be edited is named in one line, and the work goes on. Each sidecar is edited
by itself, and one that is as it should be is not written, so a command that was stopped is simply
started again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from orchestrator.console import counted
from orchestrator.errors import InputError
from prompt_tuning.label_formats.tag_row import Row, file_of
from prompt_tuning.plain_text import printable
from prompt_tuning.sidecars.editing import apply, rejections, tagged, untagged
from prompt_tuning.sidecars.keywords import keyword, paths_of
from prompt_tuning.sidecars.merge import Suggestion
from prompt_tuning.sidecars.places import STYLES, Places, Style, sidecars_below
from prompt_tuning.storage import VERSION_DIGITS

_SHOWN = 3


class SidecarSettings(NamedTuple):
    """`style`: of the sidecars' names; None: as they are, or darktable's. `dry_run`: print what
    would change, a line for each file, and write nothing."""

    style: Style | None = None
    dry_run: bool = False


def sidecar_settings(
    tool: str | None, style: str | None, dry_run: bool, out: Path | None
) -> SidecarSettings | None:
    """What the options of `tag` ask for; None without `--format xmp`. Raises InputError."""
    if tool == "xmp":
        if out:
            raise InputError("--out: does not go with --format xmp, which writes beside the photos")
        for known in (None, *STYLES):
            if style == known:
                return SidecarSettings(known, dry_run)
        raise InputError(f"--sidecars: must be {' or '.join(STYLES)} (got {style!r})")
    for option, given in (("--sidecars", style is not None), ("--dry-run", dry_run)):
        if given:
            raise InputError(f"{option}: only goes with --format xmp")
    return None


class Notices:
    """Sidecars of which something is to be said, with their number and the first few.

    `one`, `many`: what is said after their number.
    """

    def __init__(self, one: str, many: str) -> None:
        self._one, self._many = one, many
        self.count = 0
        self._first: list[str] = []

    def add(self, example: str) -> None:
        self.count += 1
        self._first += [printable(example)] if self.count <= _SHOWN else []

    def lines(self) -> Iterator[str]:
        if self.count:
            text, such_as = (self._one, ":") if self.count == 1 else (self._many, ", such as:")
            yield f"{self.count:,} {text}{such_as}"
            yield from (f"  {example}" for example in self._first)


class SidecarWriter:
    """Writes the tags of images into their sidecars.

    `artifact`: the digest of its manifest, whose beginning is the version in each sidecar's record.
    `tree`: the artifact's groups; labels outside of them get no path.
    """

    def __init__(
        self,
        artifact: str,
        tree: Mapping[str, Mapping[str, Sequence[str]]],
        settings: SidecarSettings,
        console: Console,
    ) -> None:
        self._version, self._paths = artifact[:VERSION_DIGITS], paths_of(tree)
        self._places = Places(settings.style)
        self._dry_run, self._console = settings.dry_run, console
        self._folder: Path | None = None
        self._given: dict[Path, Path] = {}  # of this folder: whose tags a sidecar has
        self.written = self.same = self._failed = 0
        self._gone = Notices(
            "image is gone, and got no sidecar", "images are gone, and got no sidecar"
        )
        self._other = Notices(
            "image has a second sidecar, which stays as it is",
            "images have a second sidecar, which stays as it is",
        )
        self._shared = Notices(
            "sidecar belongs to another file of the same name as well",
            "sidecars belong to another file of the same name as well",
        )
        self._taken = Notices(
            "image got no tags, as its sidecar has those of another image",
            "images got no tags, as their sidecar has those of another image",
        )

    def add(self, row: Row) -> None:
        """Write an image's tags; an image that could not be read keeps its sidecar as it is."""
        if "error" in row:
            return
        image = file_of(row)
        if not os.path.lexists(image):
            self._gone.add(str(image))
            return
        if image.parent != self._folder:  # images come folder by folder
            self._folder, self._given = image.parent, {}
        place = self._places.of(image)
        if place.shared_with:
            first = self._given.setdefault(place.sidecar, image)
            if first != image:
                self._taken.add(f"{image} ({place.sidecar} has those of {first.name})")
                return
            self._shared.add(f"{place.sidecar} ({image.name}, {place.shared_with.name})")
        if place.other:
            self._other.add(f"{place.other} beside {place.sidecar}")
        suggestions = {
            name: Suggestion(tag["score"], self._paths.get(tag["name"], ""))
            for tag in row["tags"]
            if (name := keyword(tag["name"]))
        }
        changed: list[str] = []

        def edit(content: bytes | None) -> bytes | None:
            new, changed[:] = tagged(content, self._version, suggestions)
            return new

        try:
            if apply(place.sidecar, edit, self._dry_run):
                self.written += 1
                if self._dry_run:
                    _print_change(place.sidecar, changed)
            else:
                self.same += 1
        except ValueError as error:
            self._failed += 1
            _complain(self._console, error)

    @property
    def failed(self) -> int:
        """How many sidecars could not be written."""
        return self._failed + self._gone.count

    def summary(self) -> Iterator[str]:
        """Lines for people."""
        would = "would be written" if self._dry_run else "written"
        yield f"{counted(self.written, 'sidecar')} {would}, {self.same:,} already as they should be"
        for notice in (self._other, self._shared, self._taken, self._gone):
            yield from notice.lines()
        if self._failed:
            yield f"{counted(self._failed, 'sidecar')} could not be written (see above)"


def untag_images(names: list[str], dry_run: bool, console: Console) -> bool:
    """Take our tags out of sidecars, and return whether all of them could be edited.

    `names`: images, sidecars, folders and patterns. Raises InputError for a name without a match.
    """
    clean = removed = failed = forgotten = 0
    for sidecar in _named_sidecars(names):
        changed: list[str] = []
        answers, gone = 0, False

        def edit(content: bytes | None) -> bytes | None:
            nonlocal answers, gone
            new, changed[:] = untagged(content)  # noqa: B023  called before the next round
            answers, gone = rejections(content) if new != content else 0, new is None
            return new

        try:
            if apply(sidecar, edit, dry_run):
                clean, removed = clean + (not gone), removed + gone
                forgotten += answers
                if dry_run:
                    _print_change(sidecar, [*changed, *(["file removed"] if gone else [])])
        except ValueError as error:
            failed += 1
            _complain(console, error)
    would = "would be " if dry_run else ""
    lines = [f"{counted(removed, 'sidecar')} {would}removed, {clean:,} {would}cleaned of our tags"]
    if forgotten:
        lines.append(f"{counted(forgotten, 'tag')} taken out by hand {would}forgotten")
    if failed:
        lines.append(f"{counted(failed, 'sidecar')} could not be edited (see above)")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return not failed


def _named_sidecars(names: list[str]) -> Iterator[Path]:
    """Raises InputError before the first sidecar, so that nothing is edited for a command with a
    mistake."""
    matches = [
        [name] if os.path.lexists(name) else sorted(glob(name, recursive=True)) for name in names
    ]
    for name, found in zip(names, matches, strict=True):
        if not found:
            raise InputError(f"{name}: no such file or folder, and no pattern with a match")
    for path in map(Path, chain.from_iterable(matches)):
        if path.is_dir():
            yield from sidecars_below(path)
        elif path.name.lower().endswith(".xmp"):
            yield path
        else:
            places = {Places(style).of(path).sidecar for style in STYLES}
            yield from sorted(place for place in places if os.path.lexists(place))


def _print_change(sidecar: Path, changed: list[str]) -> None:
    print(f"{printable(str(sidecar))}: {printable(' '.join(changed) or 'only our record')}")


def _complain(console: Console, error: ValueError) -> None:
    console.print(printable(str(error)), soft_wrap=True, highlight=False, markup=False)
