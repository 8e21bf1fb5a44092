"""Edits a sidecar on disk: whole or not at all, and never over what somebody else just wrote."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from prompt_tuning.sidecars.merge import Keywords, Suggestion, merge, rejected
from prompt_tuning.sidecars.packet import NEW, Packet, changes
from prompt_tuning.sidecars.record import Record
from prompt_tuning.storage import replacing

_ATTEMPTS = 5
_MOST_BYTES = 16 * 2**20  # a large sidecar of darktable has 1 % of this
_PAUSE = 0.05  # seconds, for a program that is in the middle of writing

Edit = Callable[[bytes | None], bytes | None]
"""From the content of a file (None: there is none) to its new content (None: remove it)."""


def tagged(
    content: bytes | None, artifact: str, suggestions: Mapping[str, Suggestion]
) -> tuple[bytes | None, list[str]]:
    """A sidecar's content with an artifact's tags in place of those we wrote, and what changed.

    The content is the same bytes if tags, paths and record stay as they are. Raises ValueError for
    content that is not XMP.
    """
    packet = Packet(NEW if content is None else content)
    found = packet.keywords
    created = content is None or bool(found.record and found.record.created)
    record = merge(found, artifact, suggestions, created)
    if record is None or _stands(found, record):
        return content, []
    bare = Packet(packet.without_ours()) if found.record else packet
    return bare.with_ours(record), list(changes(found, record))


def untagged(content: bytes | None) -> tuple[bytes | None, list[str]]:
    """A sidecar's content without anything of ours, and what is taken out.

    None for a file that we created and nobody else added to. Raises ValueError for content that is
    not XMP.
    """
    if content is None:
        return None, []
    packet = Packet(content)
    record = packet.keywords.record
    if record is None:
        return content, []
    bare = packet.without_ours()
    gone = list(changes(packet.keywords, None))
    return (None if record.created and Packet(bare).is_bare else bare), gone


def rejections(content: bytes | None) -> int:
    """How many tags of ours a sidecar's user took out. Raises ValueError as `tagged`."""
    return 0 if content is None else len(rejected(Packet(content).keywords))


def apply(sidecar: Path, edit: Edit, dry_run: bool = False) -> bool:
    """Edit a file, and return whether it changed. A link stays; the file it leads to is edited.

    The file is read again just before it is replaced. If it changed since, the edit is done anew on
    its new content. `dry_run`: only find out.

    Raises:
        ValueError: in one line with the file, if it cannot be edited or does not stop changing.
    """
    try:
        target = Path(os.path.realpath(sidecar))
        if sidecar.is_symlink() and not target.exists():
            raise ValueError("a link to a file that does not exist")
        return _apply(target, edit, dry_run)
    except ValueError as error:
        raise ValueError(f"{sidecar}: {error}") from None
    except OSError as error:
        raise ValueError(f"{sidecar}: cannot be written ({error.strerror})") from None


def _apply(target: Path, edit: Edit, dry_run: bool) -> bool:
    for _ in range(_ATTEMPTS):
        content = read(target)
        try:
            new = edit(content)
        except ValueError:
            time.sleep(_PAUSE)
            if read(target) == content:
                raise
            continue
        if new == content:
            return False
        if content is not None:
            _check_writable(target)
        if dry_run:
            return True
        if new is None:
            if read(target) == content:
                target.unlink()
                return True
        else:
            with contextlib.suppress(_Changed):
                _replace(target, content, new)
                return True
    raise ValueError("another program keeps changing it; run this again later")


class _Changed(Exception):
    """The file is not what it was when it was read."""


def _replace(target: Path, content: bytes | None, new: bytes) -> None:
    # A short name: with the name of an image in it, it could be too long.
    temporary = target.with_name(f".datafree-{uuid.uuid4().hex[:12]}.tmp")
    with replacing(target, temporary) as file:
        with file.open("xb") as stream:
            stream.write(new)
            stream.flush()
            os.fsync(stream.fileno())  # here, so that little time is between the check and the end
        if content is not None:
            before = target.stat()
            file.chmod(stat.S_IMODE(before.st_mode))
            with contextlib.suppress(PermissionError):
                os.chown(file, before.st_uid, before.st_gid)
        if read(target) != content:
            raise _Changed


def read(file: Path) -> bytes | None:
    """A file's content, or None if there is none. Raises ValueError for what is not a sidecar."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ValueError("not a file")
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"not XMP: {status.st_size:,} bytes; {_MOST_BYTES:,} are the most")
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _check_writable(file: Path) -> None:
    """Raises ValueError for a file that is read-only: a rename would not ask, nor would root."""
    if not file.stat().st_mode & 0o222 or not os.access(file, os.W_OK):
        raise ValueError("read-only")


def _stands(found: Keywords, record: Record) -> bool:
    """Whether a sidecar already has a record with its tags and paths, and nothing else of ours."""
    return found.record == record and (
        {*record.tags} <= {*found.flat} and {*record.paths} <= {*found.paths}
    )
